"""Methods over all tasks: the average per seed, paired with the baseline's, and the cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from deltasam.lab.compare.overview.overview import Column, Row
from deltasam.lab.compare.statistics.paired import estimate, paired_difference


def columns_of(table: Sequence[Row], baseline: int, *, running: bool) -> list[Column]:
    """A column for every method, not corrected yet.

    Args:
        table: All rows; averages are over the whole ones.
        baseline: Which cell of a row is the baseline's.
        running: Whether runs are missing.
    """
    whole = [row for row in table if row.whole]
    reference = _average(whole, baseline)
    return [_column(table, whole, i, {} if i == baseline else reference, running) for i in range(len(table[0].cells))]


def _column(table: Sequence[Row], whole: Sequence[Row], i: int, reference: dict[int, float], running: bool) -> Column:
    average = _average(whole, i)
    costs = [row.cells[i].cost for row in table]
    return Column(
        method=table[0].cells[i].method,
        average=estimate(list(average.values())) if average else None,
        difference=paired_difference(average, reference),
        cost=statistics.median(known) if (known := [c for c in costs if c is not None]) else None,
        diverged=_diverged(whole, i),
        running=running,
        is_baseline=table[0].cells[i].is_baseline,
    )


def _average(whole: Sequence[Row], i: int) -> dict[int, float]:
    """By seed the mean over the rows, for the seeds that all of them have; nothing of a method that diverged."""
    if len(whole) < 2 or _diverged(whole, i):
        return {}
    seeds = set.intersection(*(set(cell.values) for row in whole for cell in row.cells))
    return {seed: statistics.fmean(row.cells[i].values[seed] for row in whole) for seed in sorted(seeds)}


def _diverged(whole: Sequence[Row], i: int) -> bool:
    return any(row.cells[i].verdict == "diverged" for row in whole)
