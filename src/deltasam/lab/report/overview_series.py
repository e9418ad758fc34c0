"""The rows behind the charts of a table of experiments."""

from __future__ import annotations

from collections.abc import Iterable

from deltasam.lab.compare.overview import Overview
from deltasam.lab.compare.overview.cell_text import WORDS
from deltasam.lab.compare.overview.overview import Row as TaskRow
from deltasam.lab.compare.statistics.paired import Estimate
from deltasam.lab.report.series import Row, number


def forest_rows(row: TaskRow) -> list[Row]:
    """The paired differences of one task."""
    found = []
    for cell in row.cells:
        if cell.summary and cell.summary.difference:
            e = cell.summary.difference.estimate
            found.append(
                {"method": cell.method, "mean": e.mean, "low": e.low, "high": e.high,
                 "verdict": WORDS[cell.verdict], "decided": cell.verdict in ("better", "worse")}
            )  # fmt: skip
    return _numbers(found)


def centred(rows: Iterable[Row]) -> list[float]:
    """A span that holds every interval, with zero in the middle: panels can be compared by eye."""
    reach = max((abs(row[key]) for row in rows for key in ("low", "mean", "high") if row[key] is not None), default=0.0)
    return [-1.05 * reach or -0.01, 1.05 * reach or 0.01]


def rank_rows(overview: Overview) -> list[Row]:
    """The mean rank of each method with half the critical difference either way, then its rank on each task."""
    if not overview.ranking.mean:
        return []
    half = (overview.ranking.critical_difference or 0.0) / 2
    means = [
        {"method": m, "mean": r, "low": r - half if half else None, "high": r + half if half else None}
        for m, r in overview.ranking.mean.items()
    ]
    single = [
        {"method": m, "task": task, "rank": r}
        for task, ranks in overview.ranking.ranks.items()
        for m, r in ranks.items()
    ]
    return _numbers([*means, *single])


def tradeoff_rows(overview: Overview) -> list[Row]:
    """Cost and average difference of each method that has both; the baseline at 1 and 0."""
    found: list[Row] = []
    for column in overview.columns:
        e = column.difference.estimate if column.difference else Estimate(0.0, None, None, 0)
        if column.cost is None or not (column.difference or (column.is_baseline and column.average)):
            continue
        found.append(
            {"method": column.method, "number": len(found) + 1, "cost": column.cost, "mean": e.mean, "low": e.low,
             "high": e.high, "top": e.mean if e.high is None else e.high, "verdict": WORDS[column.verdict]}
        )  # fmt: skip
    return _numbers(found)


def _numbers(rows: list[Row]) -> list[Row]:
    return [{key: number(value) for key, value in row.items()} for row in rows]
