"""Which figures a report has, and how each is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasam.experiment.comparison import Comparison
from deltasam.experiment.report import series
from deltasam.experiment.report.charts import Charts, Spec
from deltasam.experiment.report.series import Row
from deltasam.experiment.results import RunResult


@dataclass(frozen=True)
class Figure:
    """One chart with its heading and the sentence that says how to read it."""

    key: str
    title: str
    reading: str
    spec: Spec
    methods: Sequence[str] = ()
    """What the legend lists; empty where the chart names its methods itself."""
    numbered: bool = False
    """Whether the chart names them by their place in the legend."""


def figures(
    comparison: Comparison, results: Sequence[RunResult], charts: Charts
) -> tuple[list[Figure], dict[str, list[Row]]]:
    """The figures there is data for, and the named data they draw."""
    rows = {
        "differences": series.difference_rows(comparison),
        "steps": series.step_rows(results),
        "evaluations": series.evaluation_rows(results),
        "costs": series.cost_rows(results),
        "weights": series.weight_rows(results),
    }
    found = [
        *_differences(comparison, rows, charts),
        *_curves(comparison, results, rows, charts),
        _costs(charts),
        *_weights(rows, charts),
    ]
    return found, rows


def _differences(comparison: Comparison, rows: dict[str, list[Row]], charts: Charts) -> list[Figure]:
    if not rows["differences"]:
        return []
    reading = (
        f"Each large dot is a method's mean difference to {comparison.baseline} with its 95 % interval, each "
        "small ring one seed; an interval across the dashed line means the difference may be noise."
    )
    span = series.difference_span(rows["differences"])
    title = f"{comparison.metric} minus {comparison.baseline}'s, right is better"
    count = sum(m.difference is not None for m in comparison.others)
    spec = charts.differences("differences", title, span, count)
    return [Figure("differences", f"Paired differences in {comparison.metric}", reading, spec)]


def _curves(
    comparison: Comparison, results: Sequence[RunResult], rows: dict[str, list[Row]], charts: Charts
) -> list[Figure]:
    """Whatever changes over the steps. Bold lines are means over seeds, faint ones the seeds."""
    seeds = "bold is the mean over seeds, faint each seed; a line that ends early diverged"
    over = f"averaged over windows of {series.window(results)} steps"
    loss = f"{comparison.loss_name} per example"
    wanted = [
        ("evaluations", "metric", f"Evaluation {comparison.metric}", comparison.metric,
         f"Higher is better ({seeds})."),
        ("evaluations", "loss", "Evaluation loss", loss,
         f"Lower is better; rising while the training loss falls is overfitting ({seeds})."),
        ("steps", "loss", "Training loss", loss, f"How fast each method fits the training data, {over} ({seeds})."),
        ("steps", "gap", "Perturbed minus plain loss", "loss difference",
         f"How much the loss rises at the perturbed weights: lower means a flatter place, {over} ({seeds})."),
    ]  # fmt: skip
    found = []
    for source, field, title, axis, reading in wanted:
        drawn = [m for m in charts.methods if any(r["method"] == m and r[field] is not None for r in rows[source])]
        if drawn:
            span = series.span(results, rows[source], field)
            spec = charts.curves(source, field, axis, span, dots=source == "evaluations")
            found.append(Figure(f"{source}-{field}", title, reading, spec, drawn))
    return found


def _costs(charts: Charts) -> Figure:
    reading = "Bars are means over seeds of the median step, ticks the single seeds; shorter is cheaper."
    return Figure("costs", "Cost per step", reading, charts.costs("costs"))


def _weights(rows: dict[str, list[Row]], charts: Charts) -> list[Figure]:
    drawn = [m for m in charts.methods if any(row["method"] == m for row in rows["weights"])]
    if not drawn:
        return []
    reading = (
        "How widely the method spreads its attention over the training examples: a peak at the dashed line "
        "treats all alike. The last bar also counts the half percent beyond it."
    )
    return [Figure("weights", "Weights of the training examples", reading, charts.weights("weights"), drawn)]
