"""A diagnosis as one self-contained web page."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from pathlib import Path

from deltasam.lab.diagnose.diagnosis import Diagnosis, Finding
from deltasam.lab.diagnose.diagnostic import Plot
from deltasam.lab.diagnose.drawing import draw, literal
from deltasam.lab.diagnose.example_rows import EXAMPLES, GEOMETRY, ExampleRow, example_rows
from deltasam.lab.diagnose.number_text import number_text
from deltasam.lab.report.rendering import write_page

_SHOWN = 10

CAUTION = (
    "These are measurements at one point, on these rows and at these radii. None of them predicts how well a model "
    "does on other data: the accuracy on rows that were set aside does that. In fine-tuned transformers sharpness and "
    "generalization can be unrelated, or even related the other way round (Andriushchenko et al. 2023)."
)


@dataclass(frozen=True)
class Picture:
    """A plot inside the page, for light and for dark.

    Attributes:
        alt: What it shows.
        light: As a data URI.
        dark: Likewise.
        width: In pixels.
        height: Likewise.
    """

    alt: str
    light: str
    dark: str
    width: int
    height: int


@dataclass(frozen=True)
class Cell:
    """A main number as it is shown."""

    text: str
    note: str


@dataclass(frozen=True)
class Section:
    """What the page says of one diagnostic.

    Attributes:
        name: Of the diagnostic.
        title: Likewise.
        columns: What was measured: checkpoints, or pairs of them.
        rows: Main numbers by what they are called and then by column; None where a column has no such number.
        readings: By column.
        missing: What was not measured, with the reasons.
        applies: Whether there was anything to measure.
        failed: What went wrong, with the tracebacks.
        notes: What the measures warned of, by column.
        pictures: Its plots.
    """

    name: str
    title: str
    columns: list[str]
    rows: dict[str, dict[str, Cell | None]]
    readings: dict[str, str]
    missing: dict[str, str]
    applies: bool
    failed: dict[str, str]
    notes: dict[str, list[str]]
    pictures: list[Picture]


def write_diagnosis_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page.

    Raises:
        UserError: The file cannot be written.
    """
    write_page(
        "diagnosis.html.jinja",
        path,
        figures={},
        config=diagnosis.facts,
        checkpoints=[subject.name for subject in diagnosis.subjects],
        measured=measured(diagnosis),
        answers=answers(diagnosis),
        caution=CAUTION,
        sections=[_section(finding) for finding in diagnosis.findings],
        examples=_examples(diagnosis),
        examples_file=EXAMPLES,
    )


def measured(diagnosis: Diagnosis) -> str:
    """What was measured, in a sentence."""
    subject = diagnosis.subjects[0]
    count = len(diagnosis.subjects)
    who = "One checkpoint" if count == 1 else f"{count} checkpoints"
    done = [bool(finding.results) for finding in diagnosis.findings if finding.applies]
    return (
        f"{who} measured on {subject.examples} {subject.settings.split} rows of {subject.data.name}: {sum(done)} of "
        f"{len(done)} diagnostic{'' if len(done) == 1 else 's'}."
    )


def answers(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """The sentences of all diagnostics, by checkpoint."""
    found: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        for name, sentence in finding.answers.items():
            found.setdefault(name, []).append(sentence)
    return found


def _section(finding: Finding) -> Section:
    columns = list(finding.results)
    rows: dict[str, dict[str, Cell | None]] = {
        called: {name: Cell(number_text(cells[name]), cells[name].note) if name in cells else None for name in columns}
        for called, cells in finding.numbers.items()
    }
    diagnostic, pictures = finding.diagnostic, [_picture(plot) for plot in finding.plots]
    said = (finding.readings, finding.missing, finding.applies, finding.failed, finding.notes)
    return Section(diagnostic.name, diagnostic.title, columns, rows, *said, pictures)


def _picture(plot: Plot) -> Picture:
    light, dark = draw(plot, "light"), draw(plot, "dark")
    width, height = struct.unpack(">II", light[16:24])  # where a PNG has its size
    return Picture(plot.alt.replace(literal("$"), "$"), _uri(light), _uri(dark), width, height)


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _examples(diagnosis: Diagnosis) -> dict[str, list[ExampleRow]]:
    """The first rows of each checkpoint whose examples were measured."""
    found = {s.name: (s, diagnosis.result_of(GEOMETRY, s.name)) for s in diagnosis.subjects}
    return {name: example_rows(s, geometry)[:_SHOWN] for name, (s, geometry) in found.items() if geometry is not None}
