"""Run diagnostics on checkpoints, one after the other, and keep what each finds as soon as it is found."""

from __future__ import annotations

import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam.core.files import replacing, write_atomically
from deltasam.lab.diagnose.diagnostic import Diagnostic, NotMeasuredError, Number, Plot
from deltasam.lab.diagnose.drawing import draw, legends
from deltasam.lab.diagnose.example_rows import GEOMETRY, ExampleRow, example_rows, write_examples
from deltasam.lab.diagnose.subject import Subject
from deltasam.lab.train.jsonable import to_jsonable
from deltasam.per_example.recorder import NotCoveredError

RESULTS = "diagnosis.json"

# What measures raise for a model or data that they cannot measure. Anything else is a failure (of memory, a derivative
# that PyTorch lacks, a defect here), which must not pass for a reason.
_REFUSALS = (NotMeasuredError, NotCoveredError, ValueError, ModuleNotFoundError)


@dataclass
class Finding:
    """What one diagnostic found.

    Attributes:
        diagnostic: Which one.
        results: By checkpoint, or by what was measured together.
        missing: Why others were not measured, likewise.
        failed: What went wrong in others, likewise, with the traceback.
        notes: Warnings of the measures, likewise: numbers that are no more than rounding, say.
        seconds: How long each took, likewise.
        applies: Whether there was anything to measure; if not, ``missing`` says why. That is no fault of a checkpoint.
    """

    diagnostic: Diagnostic[Any]
    results: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    applies: bool = True

    @property
    def numbers(self) -> dict[str, dict[str, Number]]:
        """Main numbers, by what they are called and then by checkpoint."""
        found: dict[str, dict[str, Number]] = {}
        for name, result in self.results.items():
            for called, number in self.diagnostic.numbers(result).items():
                found.setdefault(called, {})[name] = number
        return found

    @property
    def readings(self) -> dict[str, str]:
        """What the numbers say, by checkpoint."""
        return {name: self.diagnostic.reading(result) for name, result in self.results.items()}

    @property
    def answers(self) -> dict[str, str]:
        """Its sentence, by checkpoint."""
        return {name: self.diagnostic.answer(result) for name, result in self.results.items()}

    @property
    def plots(self) -> list[Plot]:
        """Pictures of all that was measured."""
        named = dict(zip(legends(self.results), self.results.values(), strict=True))
        return self.diagnostic.plots(named) if named else []


@dataclass
class Diagnosis:
    """What was found so far.

    Attributes:
        subjects: The checkpoints.
        facts: How it was made; values may be nested mappings.
        findings: One entry per diagnostic that has begun.
    """

    subjects: list[Subject]
    facts: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)

    @property
    def failures(self) -> dict[str, str]:
        """Tracebacks, by diagnostic and what it was measured on."""
        return {
            f"{finding.diagnostic.name} ({name})": text
            for finding in self.findings
            for name, text in finding.failed.items()
        }

    def result_of(self, diagnostic: str, checkpoint: str) -> Any:
        """What a diagnostic found of a checkpoint; None where it was not measured."""
        found = {finding.diagnostic.name: finding.results for finding in self.findings}
        return found.get(diagnostic, {}).get(checkpoint)

    def examples(self) -> list[ExampleRow]:
        """The examples of every checkpoint."""
        return [row for s in self.subjects for row in example_rows(s, self.result_of(GEOMETRY, s.name))]


def diagnose(
    subjects: Sequence[Subject],
    names: Sequence[str],
    folder: Path,
    facts: Mapping[str, Any],
    watch: Callable[[str], None],
) -> Diagnosis:
    """Run diagnostics; numbers, pictures and the table of examples are written as each finishes.

    What cannot be measured is kept with the reason, what fails with its traceback.

    Args:
        subjects: The checkpoints.
        names: Of the diagnostics, in their order.
        folder: Where everything goes.
        facts: How it was made.
        watch: Told what is measured next.

    Raises:
        UserError: The folder cannot be written.
    """
    diagnosis = Diagnosis(list(subjects), facts)
    write_examples(diagnosis.examples(), folder)
    for name in names:
        finding = Finding(Diagnostic.registry[name])
        diagnosis.findings.append(finding)
        _measure(finding, diagnosis.subjects, watch)
        for plot in finding.plots:
            with replacing(folder / f"{plot.name}.png") as temporary:
                temporary.write_bytes(draw(plot, "light"))
        write_atomically(folder / RESULTS, json.dumps(_record(diagnosis), indent=2, allow_nan=False) + "\n")
        write_examples(diagnosis.examples(), folder)
    return diagnosis


def count(subjects: Sequence[Subject], names: Sequence[str]) -> int:
    """How many measurements diagnostics are: how often ``watch`` is called."""
    return sum(len(_groups(Diagnostic.registry[name], subjects)[0]) or 1 for name in names)


def _groups(
    diagnostic: Diagnostic[Any], subjects: Sequence[Subject]
) -> tuple[dict[str, tuple[Subject, ...]], dict[str, str]]:
    """What is measured together, and why nothing is."""
    try:
        return diagnostic.groups(subjects), {}
    except NotMeasuredError as reason:
        return {}, {", ".join(subject.name for subject in subjects): str(reason)}


def _measure(finding: Finding, subjects: Sequence[Subject], watch: Callable[[str], None]) -> None:
    diagnostic = finding.diagnostic
    groups, finding.missing = _groups(diagnostic, subjects)
    finding.applies = bool(groups)
    if not groups:
        watch(diagnostic.name)
    for name, group in groups.items():
        watch(f"{diagnostic.name}: {name}")
        began = time.perf_counter()
        try:
            with _warnings() as said:
                finding.results[name] = diagnostic.measure(*group)
        except _REFUSALS as reason:
            finding.missing[name] = str(reason) or type(reason).__name__
        except Exception:  # noqa: BLE001 (kept with its traceback; what others find is not lost for it)
            finding.failed[name] = traceback.format_exc()
        if said:
            finding.notes[name] = said
        finding.seconds[name] = time.perf_counter() - began


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Fills a list with the warnings of the measures inside, each once; they would be lost behind the progress bar."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            own = [warning for warning in caught if issubclass(warning.category, RuntimeWarning)]
            said += dict.fromkeys(str(warning.message) for warning in own)
    for warning in caught:
        if warning not in own:  # what libraries say to those who write code
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _record(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "facts": to_jsonable(diagnosis.facts),
        "checkpoints": [
            {"name": s.name, "split": s.settings.split, "examples": s.examples} for s in diagnosis.subjects
        ],
        "diagnostics": {
            finding.diagnostic.name: {
                "title": finding.diagnostic.title,
                "numbers": to_jsonable(finding.numbers),
                "readings": finding.readings,
                "results": to_jsonable(finding.results),
                "not_measured": finding.missing,
                "failed": finding.failed,
                "notes": finding.notes,
                "seconds": finding.seconds,
            }
            for finding in diagnosis.findings
        },
    }
