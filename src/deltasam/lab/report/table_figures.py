"""Which figures the page has of a whole table, and how each is read."""

from __future__ import annotations

from deltasam.lab.compare.statistics import formatting
from deltasam.lab.compare.statistics.table import Table
from deltasam.lab.report import series
from deltasam.lab.report.alt_text import describe, estimates
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.figures import INTERVAL, Figure
from deltasam.lab.report.series import Row


def panels(table: Table, charts: Charts) -> list[Figure]:
    """One small chart of differences for each task that has any."""
    figures = []
    for i, row in enumerate(table.rows):
        if rows := series.forest_rows(row):
            key = f"panel-{i}"
            alt = describe(f"{row.metric} on {row.name} minus {table.baseline}'s", estimates(rows, signed=True))
            columns = {"method": "method", "mean": "mean difference", **INTERVAL, "verdict": "verdict"}
            spec = charts.forest(key, series.centred_span(rows))
            figures.append(Figure(key, row.name, row.metric, spec, alt, key, rows, columns))
    return figures


def table_figures(table: Table, charts: Charts) -> list[Figure]:
    """Ranks over the tasks, and what the average difference costs."""
    ranks, tradeoff = series.rank_rows(table.ranking), series.tradeoff_rows(table.columns)
    return [
        *([_ranks(table, charts, ranks)] if ranks else []),
        *([_tradeoff(table, charts, tradeoff)] if len(tradeoff) > 1 else []),
    ]


def _ranks(table: Table, charts: Charts, rows: list[Row]) -> Figure:
    ranking, mean = table.ranking, table.ranking.mean
    if ranking.critical_difference:
        bars = "Two methods differ if their bars, each as wide as Nemenyi's critical difference, do not overlap."
    elif ranking.p_value is not None:
        bars = f"They do not differ by more than chance (Friedman {formatting.p_value(ranking.p_value)})."
    else:
        bars = "They were not tested: that takes three methods and all runs."
    reading = (
        f"Dots are mean ranks, rings below them the ranks on single tasks; left is better. {bars} This test has "
        "an error rate of its own, 5 %, and takes tasks for independent, which variants of one data set are not."
    )
    title = f"Ranks over {len(ranking.ranks)} tasks"
    alt = describe(f"{title}, mean", [f"{method}: {value:.1f}" for method, value in mean.items()])
    columns = {"method": "method", "task": "task", "rank": "rank", "mean": "mean rank"}
    spec = charts.ranks("ranks", sorted(mean, key=mean.__getitem__))
    return Figure("ranks", title, reading, spec, alt, "ranks", rows, columns)


def _tradeoff(table: Table, charts: Charts, rows: list[Row]) -> Figure:
    reading = (
        f"Average difference to {table.baseline} over {len(table.whole_rows)} tasks with its 95 % interval: "
        "higher is better, further left is cheaper; an interval across the dashed line may be noise."
    )
    costs = [row["cost"] for row in rows]
    spans = {"difference": series.difference_span(rows), "cost": [0.95 * min(costs), 1.05 * max(costs)]}
    spec = charts.tradeoff("tradeoff", "average difference", f"time per step over {table.baseline}'s", spans)
    brings = zip(estimates(rows, signed=True), costs, strict=True)
    entries = [f"{difference}, at {cost:.3g} times the time" for difference, cost in brings]
    alt = describe(f"Average difference to {table.baseline}, and its cost", entries)
    columns = {"method": "method", "cost": f"time over {table.baseline}'s", "mean": "average difference",
               **INTERVAL, "verdict": "verdict"}  # fmt: skip
    title, methods = "What it costs and what it brings", [row["method"] for row in rows]
    return Figure("tradeoff", title, reading, spec, alt, "tradeoff", rows, columns, methods, numbered=True)
