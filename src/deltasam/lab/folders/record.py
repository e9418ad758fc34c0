"""All runs of a table in one file that can be published: a line about the table, a line per row, a line per run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltasam.core.files import write_atomically
from deltasam.errors import UserError
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.folders.files import FINAL, SEARCH
from deltasam.lab.reproduce.search import candidates, choose
from deltasam.lab.train.results import RunResult


@dataclass(frozen=True)
class Record:
    """A table of experiments, as far as it is.

    Attributes:
        about: Its title and what it is about.
        facts: What each row was run with, by its name.
        runs: The finished runs by row and stage, those of the searches too.
    """

    about: Mapping[str, Any]
    facts: Mapping[str, Mapping[str, Any]]
    runs: Mapping[tuple[str, str], Sequence[RunResult]]

    @cached_property
    def rows(self) -> list[RunGroup]:
        """The rows with the specs that their searches chose, without the single steps of the runs.

        Raises:
            UserError: Every candidate of a method diverged.
        """
        return [self._row(name) for name in self.facts]

    def _row(self, name: str) -> RunGroup:
        facts = self.facts[name]
        methods, searched = facts["methods"], self.runs.get((facts["row"]["chosen_on"] or name, SEARCH), ())
        tried = {(run.method, run.seed) for run in searched}
        if {(spec, seed) for spec in candidates(methods) for seed in facts["search"]["seeds"]} <= tried:
            chosen = choose(methods, searched)
        else:
            chosen = {label: f"{label}, not chosen yet" for label in methods}
        return RunGroup(
            name=name,
            metrics=tuple(facts["reported"]),
            results=[dataclasses.replace(run, steps=[]) for run in self.runs.get((name, FINAL), ())],
            labels={spec: label for label, spec in chosen.items()},
            seeds=dict.fromkeys(chosen, tuple(facts["seeds"])),
            searched={chosen[label]: ", ".join(specs) for label, specs in methods.items() if len(specs) > 1},
            options=facts,
        )


def write_record(record: Record, path: Path) -> None:
    """Write every finished run without its single steps and examples."""
    lines: list[dict[str, Any]] = [{"kind": "table", **record.about}]
    for name, facts in record.facts.items():
        lines.append({"kind": "row", "name": name, **facts})
        for stage in (SEARCH, FINAL):
            runs = record.runs.get((name, stage), ())
            lines += [{"kind": "run", "row": name, "stage": stage, "run": _short(run)} for run in runs]
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_record(path: Path) -> Record:
    """Inverse of ``write_record``.

    Raises:
        UserError: It cannot be read, or a line is none of the three.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    kinds: dict[str, list[dict[str, Any]]] = {"table": [], "row": [], "run": []}
    for line in lines:
        kinds[line.pop("kind")].append(line)
    if not kinds["table"]:
        raise UserError(f"{path}: no line about the table; give a file that deltasam reproduce wrote")
    runs: dict[tuple[str, str], list[RunResult]] = {}
    for line in kinds["run"]:
        runs.setdefault((line["row"], line["stage"]), []).append(_run(line["run"]))
    return Record(kinds["table"][0], {line.pop("name"): line for line in kinds["row"]}, runs)


def _short(run: RunResult) -> dict[str, Any]:
    fields = dataclasses.asdict(dataclasses.replace(run, steps=[], examples=[], weights=[]))
    return {key: value for key, value in fields.items() if value not in ([], None)}


def _run(run: dict[str, Any]) -> RunResult:
    return RunResult.from_json(
        json.dumps({"steps": [], "evaluations": [], "examples": [], "peak_memory_mib": None, **run})
    )
