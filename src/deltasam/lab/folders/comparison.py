"""One comparison as it lies in folders: the runs that are finished, and those that were meant to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltasam.lab.train.results import RunResult


@dataclass(frozen=True)
class Gathered:
    """Runs on the same data with the same options, which differ in method and seed alone.

    Attributes:
        title: Where they are from; no two comparisons have the same.
        results: The finished runs, with short specs.
        planned: By method, the seeds it was to be run with.
        options: What all runs have in common.
    """

    title: str
    results: list[RunResult]
    planned: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any]

    @property
    def missing(self) -> dict[str, list[int]]:
        """By method, the planned seeds without a finished run; methods that are whole are left out."""
        there = {(run.method, run.seed) for run in self.results}
        found = {m: [s for s in seeds if (m, s) not in there] for m, seeds in self.planned.items()}
        return {method: seeds for method, seeds in found.items() if seeds}

    @property
    def missing_note(self) -> str:
        """What is not finished, in a sentence; empty where nothing is missing."""
        missing = self.missing
        if not missing:
            return ""
        of = sum(map(len, self.planned.values()))
        each = "; ".join(f"{m} with seed {', '.join(map(str, seeds))}" for m, seeds in missing.items())
        count = sum(map(len, missing.values()))
        return f"Not finished: {count} of {of} runs are missing ({each}). What they belong to is not judged."
