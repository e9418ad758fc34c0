"""Compare methods over seeds: in each row, over all rows, and with one correction for every difference of a table.

The design is paired: for one seed every method saw the same data order, head initialisation and dropout, so
differences are taken seed by seed. That removes the noise the seeds share, not the noise of having few.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

from scipy import special

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.paired import (
    LEVEL,
    Difference,
    Estimate,
    estimate,
    finite,
    holm,
    mean_of,
    paired_difference,
)
from deltasam.lab.compare.statistics.ranking import rank
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.compare.statistics.table import Cell, Column, Row, Table
from deltasam.lab.train.results import RunResult, relative_seconds

Runs = Mapping[int, RunResult]
Judged = TypeVar("Judged", Cell, Column)


def compare(groups: Sequence[RunGroup], baseline: str = "erm") -> Table:
    """Compare methods on the tasks of a table, on each and over all of them.

    Args:
        groups: The tasks, in the table's order; runs may be missing.
        baseline: The label of the method to compare with.

    Raises:
        UserError: No tasks, no baseline, or tasks that are ambiguous.
    """
    _check_names(groups)
    labels = list(dict.fromkeys(label for group in groups for label in group.labels.values()))
    if baseline not in labels:
        raise UserError(f"the table has no {baseline!r} to compare with; it has: {', '.join(labels)}")
    methods = [baseline, *(label for label in labels if label != baseline)]
    seeds = tuple(sorted({run.seed for group in groups for run in group.results}))
    rows = tuple(_row(group, methods, baseline, seeds) for group in groups)
    table = Table(baseline, rows)
    columns = tuple(_column(table, i) for i in range(len(methods)))
    ranking = rank({row.name: _means(row) for row in table.whole_rows}, methods, test=not table.running)
    return _corrected(dataclasses.replace(table, columns=columns, ranking=ranking))


def compare_together(groups: Sequence[RunGroup], baseline: str | None = None) -> Table:
    """Compare methods in several groups of runs, which need not be of one kind: nothing is averaged over them.

    Args:
        groups: At least one, each with finished runs.
        baseline: Spec or name of the method to compare with. By default each group's ``erm``, else its first method.

    Raises:
        UserError: Groups that are ambiguous, or an unknown baseline.
    """
    _check_names(groups)
    baselines = [_find_baseline([run.method for run in group.results], baseline) for group in groups]
    methods = dict.fromkeys(m for name, group in zip(baselines, groups, strict=True) for m in (name, *group.seeds))
    rows = tuple(_row(group, list(methods), name, ()) for name, group in zip(baselines, groups, strict=True))
    common = baselines[0] if len(set(baselines)) == 1 else "the baseline"
    return _corrected(Table(common, rows, unit="comparison"))


def compare_runs(results: Sequence[RunResult], baseline: str | None = None) -> Row:
    """Compare methods in one group of runs: a table with one row.

    Args:
        results: One run per method and seed; pairs may be missing.
        baseline: As in ``compare_together``.

    Raises:
        UserError: No runs, runs given twice, runs of several settings or with different main metrics, or an unknown
            baseline.
    """
    (row,) = compare_together([RunGroup.by_method("", results)], baseline).rows
    return row


def _check_names(groups: Sequence[RunGroup]) -> None:
    """Rows are told apart by their names."""
    if not groups:
        raise UserError("no rows: there is nothing to put into a table")
    for name, count in collections.Counter(group.name for group in groups).items():
        if count > 1:
            raise UserError(f"{count} rows are called {name!r}; give each a name of its own")


def _find_baseline(methods: Sequence[str], wanted: str | None) -> str:
    if wanted in methods:
        return str(wanted)
    for method in methods:
        if method.split(":")[0] == (wanted or "erm"):
            return method
    if wanted is not None:
        known = ", ".join(dict.fromkeys(methods))
        raise UserError(f"baseline {wanted!r} is not among the methods; choose one of: {known}")
    return methods[0]


def _row(group: RunGroup, methods: Sequence[str], baseline: str, seeds: tuple[int, ...]) -> Row:
    """A row before correction; ``seeds`` are planned where the group names none."""
    runs, specs = group.by_column(), {label: spec for spec, label in group.labels.items()}
    cells = [
        _cell(
            Cell(method, specs.get(method), method == baseline, tuple(group.seeds.get(method, seeds))),
            runs.get(method, {}),
            runs.get(baseline, {}),
            group.metrics,
        )
        for method in methods
    ]
    return Row(group.name, group.metrics, tuple(cells))


def _cell(empty: Cell, runs: Runs, baseline: Runs, metrics: Sequence[str]) -> Cell:
    """A method with its runs by seed; its p-value is not corrected yet."""
    main, *further = metrics
    metric, loss = _values(runs, main), _values(runs, "loss")
    memory = [run.peak_memory_mib for run in runs.values() if run.peak_memory_mib is not None]
    return dataclasses.replace(
        empty,
        values=metric,
        diverged=tuple(sorted((metric.keys() - finite(metric)) | (loss.keys() - finite(loss)))),
        metric=mean_of(metric),
        loss=mean_of(loss),
        ece=mean_of(_values(runs, "ece")),
        others={name: mean_of(_values(runs, name)) for name in further},
        difference=None if empty.is_baseline else paired_difference(metric, _values(baseline, main)),
        cost=_cost(runs, baseline),
        peak_memory_mib=max(memory, default=None),
        auroc=_detection(runs, "auroc"),
        average_precision=_detection(runs, "average_precision"),
    )


def _values(runs: Runs, name: str) -> dict[int, float]:
    """A metric by seed, of the runs that have it."""
    return {seed: run.metrics[name] for seed, run in runs.items() if name in run.metrics}


def _cost(runs: Runs, baseline: Runs) -> float | None:
    """How many times as long as the baseline's the steps take.

    Steps are paired, since batches differ in length. The record of a published table has no steps, but each run's time
    per step: of these ratios the median counts, so that a run that was held up does not show.
    """
    pairs = [(runs[seed], baseline[seed]) for seed in sorted(runs.keys() & baseline.keys())]
    if not any(run.steps for pair in pairs for run in pair):
        ratios = [ours.seconds_per_step / theirs.seconds_per_step for ours, theirs in pairs]
        return statistics.median(ratios) if ratios else None
    paired = [relative_seconds(ours.steps, theirs.steps) for ours, theirs in pairs]
    known = [ratio for ratio in paired if ratio is not None]
    return statistics.fmean(known) if known else None


def _detection(runs: Runs, measure: str) -> dict[str, Estimate]:
    """How well each ranking of the examples finds wrong labels, over the seeds in which that is defined."""
    found: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for by, detection in run.detection.items():
            if (value := getattr(detection, measure)) is not None:
                found.setdefault(by, {})[seed] = value
    return {by: mean for by, values in found.items() if (mean := mean_of(values))}


def _column(table: Table, i: int) -> Column:
    """A method over all rows, not corrected yet; averages are over the whole ones."""
    cells = [row.cells[i] for row in table.rows]
    average = _average(table.whole_rows, i)
    reference = next(n for n, cell in enumerate(table.rows[0].cells) if cell.is_baseline)
    costs = [cell.cost for cell in cells if cell.cost is not None]
    return Column(
        method=cells[0].method,
        average=estimate(list(average.values())) if average else None,
        difference=None if i == reference else paired_difference(average, _average(table.whole_rows, reference)),
        cost=statistics.median(costs) if costs else None,
        diverged=_diverged(table.whole_rows, i),
        running=table.running,
        is_baseline=i == reference,
    )


def _average(rows: Sequence[Row], i: int) -> dict[int, float]:
    """By seed the mean over the rows, for the seeds that all of them have; nothing of a method that diverged."""
    if len(rows) < 2 or _diverged(rows, i):
        return {}
    seeds = set.intersection(*(set(cell.values) for row in rows for cell in row.cells))
    return {seed: statistics.fmean(row.cells[i].values[seed] for row in rows) for seed in sorted(seeds)}


def _diverged(rows: Sequence[Row], i: int) -> bool:
    return any(row.cells[i].diverged for row in rows)


def _means(row: Row) -> dict[str, float]:
    """The mean of every method of a whole row, not a number where it diverged."""
    return {c.method: math.nan if c.diverged else statistics.fmean(c.values.values()) for c in row.cells}


def _corrected(table: Table) -> Table:
    """The table with Holm's correction over every difference, hence verdicts, and with what it leaves to be seen.

    Differences without a p-value, as those whose runs are missing, count like any other: what is said of a table that
    is still running is not taken back because of their number.
    """
    judged: dict[tuple[str | None, str], Difference | None]
    judged = {(row.name, cell.method): cell.difference for row, cell in table.cells if _may_be_judged(cell, row)}
    judged |= {(None, column.method): column.difference for column in table.columns if column.verdict == "unknown"}
    p_values = {key: d.p_value for key, d in judged.items() if d and d.p_value is not None}
    family = sum(cell.spec is not None and not cell.is_baseline for _, cell in table.cells)
    if len(table.rows) > 1:
        family += sum(not column.is_baseline for column in table.columns)
    untested = [1.0] * (family - len(p_values))
    found = dict(zip(p_values, holm([*p_values.values(), *untested]), strict=False))

    def corrected(of: Judged, row: str | None) -> Judged:
        if (row, of.method) not in found or of.difference is None:
            return of
        difference = dataclasses.replace(of.difference, holm=found[row, of.method], family=family)
        return dataclasses.replace(of, difference=difference)

    intervals = [d.estimate for key, d in judged.items() if key[0] is not None and d and d.estimate.margin is not None]
    return dataclasses.replace(
        table,
        rows=tuple(
            dataclasses.replace(row, cells=tuple(corrected(cell, row.name) for cell in row.cells)) for row in table.rows
        ),
        columns=tuple(corrected(column, None) for column in table.columns),
        comparisons=family,
        half_width=statistics.median(e.margin or 0.0 for e in intervals) if intervals else None,
        smallest=statistics.median(_smallest(e, family) for e in intervals) if intervals else None,
    )


def _may_be_judged(cell: Cell, row: Row) -> bool:
    """Whether all runs are there, the baseline's too, and none of its own diverged."""
    return cell.verdict == "unknown" and row.reference.finished


def _smallest(interval: Estimate, family: int) -> float:
    """The mean at which the t-test reaches the level that Holm's correction asks of the smallest p-value."""
    freedom = interval.count - 1
    wider = special.stdtrit(freedom, 1 - LEVEL / 2 / family) / special.stdtrit(freedom, 1 - LEVEL / 2)
    return float((interval.margin or 0.0) * wider)
