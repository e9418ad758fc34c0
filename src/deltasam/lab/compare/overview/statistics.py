"""Every method against the baseline on every task, with one correction for all of these comparisons."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from deltasam.errors import UserError
from deltasam.lab.compare.overview.averages import columns_of
from deltasam.lab.compare.overview.correction import corrected
from deltasam.lab.compare.overview.overview import Cell, Overview, Row
from deltasam.lab.compare.overview.ranking import rank
from deltasam.lab.compare.overview.table_row import TableRow, check_names
from deltasam.lab.compare.statistics.comparison import MethodSummary
from deltasam.lab.compare.statistics.statistics import by_method, mean_of, summarise, values_of
from deltasam.lab.train.results import RunResult

Runs = dict[int, RunResult]


def survey(rows: Sequence[TableRow], baseline: str = "erm") -> Overview:
    """Find out what a table of experiments shows.

    Args:
        rows: The tasks, in the table's order; runs may be missing.
        baseline: The label of the method to compare with.

    Raises:
        UserError: No rows, no baseline, or rows that are ambiguous.
    """
    check_names(rows)
    methods = _methods(rows, baseline)
    seeds = tuple(sorted({run.seed for row in rows for run in row.results}))
    table = [Row(row.name, row.metrics, tuple(_cells(row, methods, row.seeds or seeds, baseline))) for row in rows]
    running = any(not cell.finished for row in table for cell in row.cells if cell.spec is not None)
    whole = [row for row in table if row.whole]
    columns = columns_of(table, methods.index(baseline), running=running)
    ranking = rank({row.name: _means(row) for row in whole}, methods, test=not running)
    return corrected(Overview(baseline, tuple(table), tuple(columns), ranking))


def _methods(rows: Sequence[TableRow], baseline: str) -> list[str]:
    """Every label in order of appearance, the baseline first."""
    labels = list(dict.fromkeys(label for row in rows for label in row.labels.values()))
    if baseline not in labels:
        raise UserError(f"the table has no {baseline!r} to compare with; it has: {', '.join(labels)}")
    return [baseline, *(label for label in labels if label != baseline)]


def _cells(row: TableRow, methods: Sequence[str], seeds: tuple[int, ...], baseline: str) -> Iterable[Cell]:
    results = row.labelled()
    runs = by_method(results) if results else {}
    specs = {label: spec for spec, label in row.labels.items()}
    reference = runs.get(baseline, {})
    for method in methods:
        of_method = runs.get(method, {})
        yield Cell(
            method=method,
            spec=specs.get(method),
            planned=seeds,
            values=values_of(of_method, row.metrics[0]),
            summary=_summary(method, of_method, reference, method == baseline),
            others={name: mean_of(values_of(of_method, name)) for name in row.metrics[1:]},
            cost=_cost(of_method, reference),
            is_baseline=method == baseline,
        )


def _summary(method: str, runs: Runs, reference: Runs, is_baseline: bool) -> MethodSummary | None:
    if not runs:
        return None
    summary = summarise(method, runs, reference)
    return dataclasses.replace(summary, difference=None) if is_baseline else summary


def _cost(runs: Runs, reference: Runs) -> float | None:
    """Both had the same batches, so their times can be divided."""
    ratios = [runs[s].seconds_per_step / reference[s].seconds_per_step for s in sorted(runs.keys() & reference.keys())]
    return statistics.median(ratios) if ratios else None


def _means(row: Row) -> dict[str, float]:
    """The mean of every method of a whole row, not a number where it diverged."""
    return {c.method: math.nan if c.verdict == "diverged" else statistics.fmean(c.values.values()) for c in row.cells}
