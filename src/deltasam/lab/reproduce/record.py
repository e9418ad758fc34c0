"""All runs of a table in one file that can be published: a line about the table, a line per row, a line per run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from deltasam.core.files import write_atomically
from deltasam.errors import UserError
from deltasam.lab.compare.overview import TableRow
from deltasam.lab.reproduce.experiment import FINAL, SEARCH, Experiment
from deltasam.lab.reproduce.search import choose
from deltasam.lab.train.results import RunResult


def write_record(experiment: Experiment, path: Path) -> None:
    """Write every finished run, those of the searches too, without their single steps and examples."""
    preset = experiment.preset
    lines: list[dict[str, Any]] = [
        {"kind": "table", "table": preset.table, "title": preset.title, "about": preset.about.strip()}
    ]
    for row in preset.rows:
        lines.append({"kind": "row", "name": row.name, **experiment.recorded(row)})
        for stage in (SEARCH, FINAL):
            lines += [
                {"kind": "run", "row": row.name, "stage": stage, "run": _short(run)}
                for run in experiment.runs(row, stage)
            ]
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


@dataclasses.dataclass(frozen=True)
class Record:
    """A published table.

    Attributes:
        about: Its title and what it is about.
        rows: Its rows.
        facts: What each row was run with, by its name.
    """

    about: dict[str, Any]
    rows: list[TableRow]
    facts: dict[str, dict[str, Any]]


def read_record(path: Path) -> Record:
    """Read what ``write_record`` wrote.

    Raises:
        UserError: It cannot be read, or a line is none of the three.
    """
    lines = _lines(path)
    about = next((line for line in lines if line.get("kind") == "table"), None)
    if about is None:
        raise UserError(f"{path}: no line about the table; give a file that deltasam reproduce wrote")
    facts = {line["name"]: line for line in lines if line["kind"] == "row"}
    return Record(about, [_row(row, lines) for row in facts.values()], facts)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _row(row: dict[str, Any], lines: list[dict[str, Any]]) -> TableRow:
    def runs(name: str, stage: str) -> list[RunResult]:
        return [_run(line["run"]) for line in lines if line.get("row") == name and line.get("stage") == stage]

    chosen = choose(row["methods"], runs(row["row"]["chosen_on"] or row["name"], SEARCH))
    return TableRow(
        name=row["name"],
        metrics=tuple(row["reported"]),
        results=runs(row["name"], FINAL),
        labels={spec: label for label, spec in chosen.items()},
        seeds=tuple(row["seeds"]),
        searched={chosen[label]: ", ".join(specs) for label, specs in row["methods"].items() if len(specs) > 1},
    )


def _short(run: RunResult) -> dict[str, Any]:
    found = dataclasses.asdict(dataclasses.replace(run, steps=[], examples=[], weights=[]))
    return {key: value for key, value in found.items() if value not in ([], None)}


def _run(run: dict[str, Any]) -> RunResult:
    return RunResult.from_json(
        json.dumps({"steps": [], "evaluations": [], "examples": [], "peak_memory_mib": None, **run})
    )
