"""Which figures the page of a table has, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.lab.compare.overview import Overview
from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.report import overview_series as series
from deltasam.lab.report.alt_text import estimates, told
from deltasam.lab.report.figures import INTERVAL, Figure
from deltasam.lab.report.overview_charts import OverviewCharts
from deltasam.lab.report.series import Row, difference_span

Rows = dict[str, list[Row]]


def panels(overview: Overview, charts: OverviewCharts) -> tuple[list[Figure], Rows]:
    """One small chart of differences for each task that has any."""
    found, rows = [], {f"panel-{i}": series.forest_rows(row) for i, row in enumerate(overview.rows)}
    for row, (key, data) in zip(overview.rows, rows.items(), strict=True):
        if data:
            alt = told(f"{row.metrics[0]} on {row.name} minus {overview.baseline}'s", estimates(data, signed=True))
            spec = charts.forest(key, series.centred(data))
            columns = {"method": "method", "mean": "mean difference", **INTERVAL, "verdict": "verdict"}
            found.append(Figure(key, row.name, row.metrics[0], spec, alt, key, columns))
    return found, rows


def across_tasks(overview: Overview, charts: OverviewCharts) -> tuple[list[Figure], Rows]:
    """Ranks, and what the average difference costs."""
    rows = {"ranks": series.rank_rows(overview), "tradeoff": series.tradeoff_rows(overview)}
    ranks = [_ranks(overview, charts, rows["ranks"])] if rows["ranks"] else []
    tradeoff = [_tradeoff(overview, charts, rows["tradeoff"])] if len(rows["tradeoff"]) > 1 else []
    return [*ranks, *tradeoff], rows


def _ranks(overview: Overview, charts: OverviewCharts, rows: list[Row]) -> Figure:
    mean: Mapping[str, float] = overview.ranking.mean
    spec = charts.ranks("ranks", sorted(mean, key=mean.__getitem__))
    if overview.ranking.critical_difference:
        bars = "Two methods differ if their bars, each as wide as Nemenyi's critical difference, do not overlap."
    elif overview.ranking.p_value is not None:
        bars = f"They do not differ by more than chance (Friedman {rounding.p_value(overview.ranking.p_value)})."
    else:
        bars = "They were not tested: that takes three methods and all runs."
    reading = (
        f"Dots are mean ranks, rings below them the ranks on single tasks; left is better. {bars} This test has "
        "an error rate of its own, 5 %, and takes tasks for independent, which variants of one data set are not."
    )
    title = f"Ranks over {len(overview.ranking.ranks)} tasks"
    alt = told(f"{title}, mean", [f"{method}: {value:.1f}" for method, value in mean.items()])
    columns = {"method": "method", "task": "task", "rank": "rank", "mean": "mean rank"}
    return Figure("ranks", title, reading, spec, alt, "ranks", columns)


def _tradeoff(overview: Overview, charts: OverviewCharts, rows: list[Row]) -> Figure:
    reading = (
        f"Average difference to {overview.baseline} over {len(overview.whole_rows)} tasks with its 95 % interval: "
        "higher is better, further left is cheaper; an interval across the dashed line may be noise."
    )
    costs = [row["cost"] for row in rows]
    spans = {"difference": difference_span(rows), "cost": [0.95 * min(costs), 1.05 * max(costs)]}
    spec = charts.tradeoff("tradeoff", "average difference", f"time per step over {overview.baseline}'s", spans)
    methods = [row["method"] for row in rows]
    brings = zip(estimates(rows, signed=True), costs, strict=True)
    entries = [f"{difference}, at {cost:.3g} times the time" for difference, cost in brings]
    alt = told(f"Average difference to {overview.baseline}, and its cost", entries)
    columns = {"method": "method", "cost": f"time over {overview.baseline}'s", "mean": "average difference",
               **INTERVAL, "verdict": "verdict"}  # fmt: skip
    title = "What it costs and what it brings"
    return Figure("tradeoff", title, reading, spec, alt, "tradeoff", columns, methods, numbered=True)
