"""The rows behind the charts: thinned, rounded, and with None where a number is not finite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deltasam.lab.compare.statistics import table
from deltasam.lab.compare.statistics.formatting import WORDS
from deltasam.lab.compare.statistics.paired import Estimate
from deltasam.lab.compare.statistics.ranking import Ranking
from deltasam.lab.data.dataset import SELECTED
from deltasam.lab.train.results import RunResult, StepRecord

Row = dict[str, Any]

_POINTS = 60
"""Most points of one line: enough for its shape, and few enough for the page to stay small."""

_BINS = 40


def window(results: Sequence[RunResult]) -> int:
    """Steps averaged into one point of the step curves."""
    return max(1, math.ceil(max((run.steps[-1].step for run in results if run.steps), default=0) / _POINTS))


def step_rows(results: Sequence[RunResult]) -> list[Row]:
    """Training loss and perturbed minus plain loss over windows of steps: of each run, then of each method."""
    width = window(results)
    rows = []
    for run in results:
        bins: dict[int, list[StepRecord]] = defaultdict(list)
        for step in run.steps[1:]:  # the first one pays for warming up
            bins[(step.step - 1) // width].append(step)
        for steps in bins.values():
            # On a schedule some have no perturbation; where none has one, there is no point.
            gaps = [s.perturbed_loss - s.loss for s in steps if not math.isnan(s.perturbed_loss)]
            point = {
                "step": np.mean([s.step for s in steps]),
                "loss": np.mean([s.loss for s in steps]),
                "gap": np.mean(gaps) if gaps else math.nan,
            }
            rows.append(_row(run, point))
    return [*rows, *_means(rows)]


def evaluation_rows(results: Sequence[RunResult]) -> list[Row]:
    """Evaluation loss and main metric, of each run, then of each method.

    Of many evaluations it is an even choice that keeps the last.
    """
    rows = []
    for run in results:
        stride = math.ceil(len(run.evaluations) / _POINTS)
        for record in run.evaluations[::-1][:: stride or 1][::-1]:
            point = {
                "loss": record.metrics.get("loss"),
                "metric": record.metrics.get(run.metric.removesuffix(SELECTED)),
            }
            rows.append(_row(run, {"step": record.step, **point}))
    return [*rows, *_means(rows)]


def estimate_row(method: str, estimate: Estimate, **more: object) -> Row:
    """The mean of a method with its interval, and what else is known of it."""
    row = {"method": method, "mean": estimate.mean, "low": estimate.low, "high": estimate.high, **more}
    return {key: number(value) for key, value in row.items()}


def difference_rows(row: table.Row) -> list[Row]:
    """Per method the mean paired difference with its interval, then one row for each seed."""
    rows = []
    for cell in row.others:
        if cell.difference:
            rows.append(estimate_row(cell.method, cell.difference.estimate, verdict=WORDS[cell.judgement]))
            by_seed = cell.difference.by_seed.items()
            rows += [{"method": cell.method, "seed": seed, "value": number(x)} for seed, x in by_seed]
    return rows


def detection_rows(row: table.Row, results: Sequence[RunResult], by: str) -> list[Row]:
    """Per method how well a ranking of the examples finds wrong labels, then one row for each seed."""
    means = [estimate_row(cell.method, cell.auroc[by]) for cell in row.begun if by in cell.auroc]
    known = [run for run in results if by in run.detection and run.detection[by].auroc is not None]
    return [*means, *(_row(run, {"value": run.detection[by].auroc}) for run in known)]


def forest_rows(row: table.Row) -> list[Row]:
    """The paired differences of one task."""
    return [
        estimate_row(
            cell.method,
            cell.difference.estimate,
            verdict=WORDS[cell.verdict],
            decided=cell.verdict in ("better", "worse"),
        )
        for cell in row.cells
        if cell.difference
    ]


def rank_rows(ranking: Ranking) -> list[Row]:
    """The mean rank of each method with half the critical difference either way, then its rank on each task."""
    half = (ranking.critical_difference or 0.0) / 2
    means = [
        estimate_row(m, Estimate(r, r - half if half else None, r + half if half else None, len(ranking.ranks)))
        for m, r in ranking.mean.items()
    ]
    if not means:
        return []
    ranks = ((task, method, rank) for task, of in ranking.ranks.items() for method, rank in of.items())
    return [*means, *({"method": method, "task": task, "rank": number(rank)} for task, method, rank in ranks)]


def tradeoff_rows(columns: Iterable[table.Column]) -> list[Row]:
    """Cost and average difference of each method that has both; the baseline at 1 and 0."""
    rows: list[Row] = []
    for column in columns:
        e = column.difference.estimate if column.difference else Estimate(0.0, None, None, 0)
        if column.cost is not None and (column.difference or (column.is_baseline and column.average)):
            known = {"number": len(rows) + 1, "cost": column.cost, "top": e.mean if e.high is None else e.high}
            rows.append(estimate_row(column.method, e, **known, verdict=WORDS[column.verdict]))
    return rows


def centred_span(rows: Iterable[Row]) -> list[float]:
    """Everything that intervals hold, with zero in the middle: panels can be compared by eye."""
    reach = max((abs(row[key]) for row in rows for key in ("low", "mean", "high") if row[key] is not None), default=0.0)
    return [-1.05 * reach or -0.01, 1.05 * reach or 0.01]


def difference_span(rows: Sequence[Row]) -> list[float]:
    """Everything the difference rows hold, and zero, with a little room on both sides."""
    values = [row[key] for row in rows for key in ("low", "mean", "high", "value") if row.get(key) is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.05 * (high - low) or 0.01
    return [low - room, high + room]


def cost_rows(results: Sequence[RunResult]) -> list[Row]:
    """Milliseconds per step of every run, then their mean for each method."""
    rows = [_row(run, {"milliseconds": 1000 * run.seconds_per_step}) for run in results]
    return [*rows, *_means(rows)]


def weight_rows(results: Sequence[RunResult]) -> list[Row]:
    """Histogram of the example weights of each method that has them, all its seeds together.

    The widest half percent of all weights is counted in the last bar, so that a few do not flatten the rest.
    """
    weights: dict[str, list[float]] = defaultdict(list)
    for run in results:
        weights[run.method] += [w for w in run.weights if math.isfinite(w)]
    values = [w for of_method in weights.values() for w in of_method]
    if not values:
        return []
    edges = np.linspace(min(values), max(np.quantile(values, 0.995), min(values) + 1e-6), _BINS + 1)
    rows = []
    for method, of_method in weights.items():
        counts, _ = np.histogram(np.clip(of_method, edges[0], edges[-1]), edges)
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            share = count / max(1, len(of_method))
            if of_method:
                rows.append({"method": method, "low": number(low), "high": number(high), "share": number(share)})
    return rows


def span(results: Sequence[RunResult], rows: Sequence[Row], field: str) -> list[float] | None:
    """Smallest and largest value over the runs that did not diverge; None if all did.

    A run on its way to infinity would flatten all others. Values that are all the same have room on both sides: of
    a single point an axis shows no more than its first digit.
    """
    lost = {(run.method, run.seed) for run in results if not _all_finite(run)}
    sound = [row for row in rows if "seed" in row and (row["method"], row["seed"]) not in lost]
    values = [row[field] for row in sound if row[field] is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    room = 0 if low < high else 0.05 * abs(low) or 0.05
    return [low - room, high + room]


def _all_finite(run: RunResult) -> bool:
    losses = [step.loss for step in run.steps] + [run.metrics[run.metric], run.metrics.get("loss", 0.0)]
    return all(map(math.isfinite, losses))


def _means(rows: Sequence[Row]) -> list[Row]:
    """One row without a seed for each method and step: the mean over the seeds that have a number there."""
    groups: dict[tuple[str, Any], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row.get("step")].append(row)
    return [_mean(of_group) for of_group in groups.values()]


def _mean(rows: Sequence[Row]) -> Row:
    found: Row = {key: rows[0][key] for key in ("method", "step") if key in rows[0]}
    for field in [key for key in rows[0] if key not in ("method", "seed", "step")]:
        values = [row[field] for row in rows if row[field] is not None]
        found[field] = number(float(np.mean(values))) if values else None
    return found


def _row(run: RunResult, values: Row) -> Row:
    numbers = {key: number(value) for key, value in values.items()}
    return {"method": run.method, "seed": run.seed, **numbers}


def number(value: object) -> Any:
    """Five significant digits of a float, None for what JSON has no number for; others as they are."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
