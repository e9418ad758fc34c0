"""Methods side by side after their weights were rounded, pruned and with noise on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasam.lab.compare.statistics.paired import Difference, Estimate, mean_of, paired_difference
from deltasam.lab.compare.statistics.table import Row
from deltasam.lab.train.results import RunResult


@dataclass(frozen=True)
class AfterCell:
    """One metric of one method after a change.

    Attributes:
        estimate: Mean over the seeds in which it is finite, with its 95 % interval; None without any.
        difference: To the baseline after the same change, paired by seed; None for the baseline itself, and where no
            seed is in common.
    """

    estimate: Estimate | None
    difference: Difference | None


@dataclass(frozen=True)
class AfterRow:
    """One method after one change.

    Attributes:
        change: In words, ``4 bits``; or ``as trained``.
        method: As the comparison calls it.
        cells: By metric, the main one first.
    """

    change: str
    method: str
    cells: dict[str, AfterCell]


def after_rows(row: Row, results: Sequence[RunResult]) -> list[AfterRow]:
    """All methods after each change, change by change; empty where the runs were not measured so.

    Args:
        row: The comparison of the runs.
        results: The runs, with methods named as there.
    """
    runs: dict[str, dict[int, RunResult]] = {}
    for run in results:
        if run.after:
            runs.setdefault(run.method, {})[run.seed] = run
    changes = {change: list(found) for run in results for change, found in run.after.items()}
    reference = runs.get(row.baseline, {})

    def cell(method: str, change: str, name: str) -> AfterCell:
        own, others = (_values(by_seed, change, name) for by_seed in (runs[method], reference))
        is_baseline = method == row.baseline
        return AfterCell(mean_of(own), None if is_baseline else paired_difference(own, others))

    return [
        AfterRow(change, method, {name: cell(method, change, name) for name in names})
        for change, names in changes.items()
        for method in runs
    ]


def _values(runs: dict[int, RunResult], change: str, metric: str) -> dict[int, float]:
    return {seed: run.after[change][metric] for seed, run in runs.items() if change in run.after}
