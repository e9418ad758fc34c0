"""Which figures a report has, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.compare.statistics.comparison import Comparison
from deltasam.lab.data.dataset import SELECTED
from deltasam.lab.report import series
from deltasam.lab.report.alt_text import estimates, last_values, middles, told
from deltasam.lab.report.charts import Charts, Spec
from deltasam.lab.report.series import Row
from deltasam.lab.train.results import RunResult

DETECTION = "detection-"
"""With it the keys of charts begin that show how well wrong labels are found."""

INTERVAL = {"low": "95 % interval from", "high": "to"}


@dataclass(frozen=True)
class Figure:
    """One chart with its heading and the sentence that says how to read it."""

    key: str
    title: str
    reading: str
    spec: Spec
    alt: str
    """What it shows, in words."""
    rows: str
    """The name of the data that it draws."""
    columns: Mapping[str, str]
    """The fields of this data that are its table, and their titles."""
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
        _costs(rows["costs"], charts),
        *_weights(rows, charts),
    ]
    detection = {f"{DETECTION}{by}": series.detection_rows(comparison, results, by) for by in NUMBERS}
    found += [_detection(key, drawn, charts) for key, drawn in detection.items() if drawn]
    return found, rows | {key: drawn for key, drawn in detection.items() if drawn}


def _differences(comparison: Comparison, rows: dict[str, list[Row]], charts: Charts) -> list[Figure]:
    if not rows["differences"]:
        return []
    reading = (
        f"Each large dot is a method's mean difference to {comparison.baseline} with its 95 % interval, each "
        "small ring one seed; an interval across the dashed line means the difference may be noise."
    )
    span = series.difference_span(rows["differences"])
    title = f"{comparison.metric} minus {comparison.baseline}'s, right is better"
    heading = f"Paired differences in {comparison.metric}"
    spec = charts.differences("differences", title, span)
    alt = told(f"{heading} to {comparison.baseline}", estimates(rows["differences"], signed=True))
    columns = {"method": "method", "seed": "seed", "value": "difference with this seed", "mean": "mean difference",
               **INTERVAL, "verdict": "verdict"}  # fmt: skip
    return [Figure("differences", heading, reading, spec, alt, "differences", columns)]


def _curves(
    comparison: Comparison, results: Sequence[RunResult], rows: dict[str, list[Row]], charts: Charts
) -> list[Figure]:
    """Whatever changes over the steps. Bold lines are means over seeds, faint ones the seeds."""
    seeds = "bold is the mean over seeds, faint each seed; a line that ends early diverged"
    width = series.window(results)
    over = f"; averaged over windows of {width} steps" if width > 1 else ""
    loss, metric = f"{comparison.loss_name} per example", comparison.metric.removesuffix(SELECTED)
    wanted = [
        ("evaluations", "metric", f"Evaluation {metric}", metric,
         f"Higher is better ({seeds})."),
        ("evaluations", "loss", "Evaluation loss", loss,
         f"Lower is better; rising while the training loss falls is overfitting ({seeds})."),
        ("steps", "loss", "Training loss", loss, f"How fast each method fits the training data{over} ({seeds})."),
        ("steps", "gap", "Perturbed minus plain loss", "loss difference",
         f"The loss where a method perturbs to, minus the loss: of one method, lower means a flatter place. Methods "
         f"with other radii, or that perturb embeddings or dropout masks, do not compare{over} ({seeds})."),
    ]  # fmt: skip
    found = []
    for source, field, title, axis, reading in wanted:
        drawn = [m for m in charts.methods if any(r["method"] == m and r[field] is not None for r in rows[source])]
        if drawn:
            span = series.span(results, rows[source], field)
            spec = charts.curves(source, field, axis, span, dots=source == "evaluations")
            alt = told(f"{title}, mean over seeds", last_values(rows[source], field))
            columns = {"method": "method", "seed": "seed", "step": "step", field: axis}
            found.append(Figure(f"{source}-{field}", title, reading, spec, alt, source, columns, drawn))
    return found


def _costs(rows: list[Row], charts: Charts) -> Figure:
    reading = "Bars are means over seeds of the time of a step, ticks the single seeds; shorter is cheaper."
    alt = told("Milliseconds per step, mean over seeds", last_values(rows, "milliseconds"))
    columns = {"method": "method", "seed": "seed", "milliseconds": "milliseconds per step"}
    return Figure("costs", "Cost per step", reading, charts.costs("costs"), alt, "costs", columns)


def _weights(rows: dict[str, list[Row]], charts: Charts) -> list[Figure]:
    drawn = [m for m in charts.methods if any(row["method"] == m for row in rows["weights"])]
    if not drawn:
        return []
    reading = (
        "How widely the method spreads its attention over the training examples: a peak at the dashed line "
        "treats all alike. The last bar also counts the half percent beyond it."
    )
    title = "Weights of the training examples"
    alt = told(f"{title}, 1 is average", middles(rows["weights"]))
    columns = {"method": "method", "low": "weight from", "high": "to", "share": "share of examples"}
    return [Figure("weights", title, reading, charts.weights("weights"), alt, "weights", columns, drawn)]


def _detection(key: str, rows: list[Row], charts: Charts) -> Figure:
    by = key.removeprefix(DETECTION)
    title = f"Wrong labels found by {by}"
    reading = (
        "Large dots are means with 95 % intervals, rings the seeds. Right of the dashed line, chance, wrong labels "
        "have the larger numbers, left of it the smaller ones."
    )
    alt = told(f"{title}, AUROC, 0.5 is chance", estimates(rows))
    columns = {"method": "method", "seed": "seed", "value": "AUROC with this seed", "mean": "mean AUROC", **INTERVAL}
    return Figure(key, title, reading, charts.detection(key, f"AUROC of the {by}"), alt, key, columns)
