"""Which figures the page has of one comparison and of several settings, and how each is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.compare.statistics import table
from deltasam.lab.compare.statistics.formatting import WORDS
from deltasam.lab.data.dataset import SELECTED
from deltasam.lab.data.setting import Setting
from deltasam.lab.report import series
from deltasam.lab.report.alt_text import describe, estimates, last_values, middles
from deltasam.lab.report.charts import Charts, Spec
from deltasam.lab.report.series import Row
from deltasam.lab.train.results import RunResult

DETECTION = "detection-"
"""With it the keys of charts begin that show how well wrong labels are found."""

INTERVAL = {"low": "95 % interval from", "high": "to"}


@dataclass(frozen=True)
class Figure:
    """One chart with its heading and the sentence that says how to read it.

    Attributes:
        key: Sets it apart from the others of its part.
        title: Its heading.
        reading: How to read it.
        spec: The chart.
        alt: What it shows, in words.
        data: The name under which the chart finds its rows; several charts may draw the same.
        rows: What it draws.
        columns: The fields of the rows that are its table, and their titles.
        methods: What the legend lists; empty where the chart names its methods itself.
        numbered: Whether the chart names them by their place in the legend.
    """

    key: str
    title: str
    reading: str
    spec: Spec
    alt: str
    data: str
    rows: Sequence[Row]
    columns: Mapping[str, str]
    methods: Sequence[str] = ()
    numbered: bool = False


MakeFigures = Callable[[table.Row, Sequence[RunResult], Charts], Iterable[Figure]]
MAKERS: list[MakeFigures] = []
"""What makes the figures of one comparison, in the order of the page; none where there is no data for it."""


def row_figure(make: MakeFigures) -> MakeFigures:
    """Decorator: the figures that a function makes are on the page of every comparison."""
    MAKERS.append(make)
    return make


def row_figures(row: table.Row, results: Sequence[RunResult], charts: Charts) -> list[Figure]:
    """The figures of one comparison that there is data for."""
    return [figure for make in MAKERS for figure in make(row, results, charts)]


@row_figure
def _differences(row: table.Row, results: Sequence[RunResult], charts: Charts) -> list[Figure]:
    rows = series.difference_rows(row)
    if not rows:
        return []
    reading = (
        f"Each large dot is a method's mean difference to {row.baseline} with its 95 % interval, each "
        "small ring one seed; an interval across the dashed line means the difference may be noise."
    )
    title = f"{row.metric} minus {row.baseline}'s, right is better"
    heading = f"Paired differences in {row.metric}"
    spec = charts.differences("differences", title, series.difference_span(rows))
    alt = describe(f"{heading} to {row.baseline}", estimates(rows, signed=True))
    columns = {"method": "method", "seed": "seed", "value": "difference with this seed", "mean": "mean difference",
               **INTERVAL, "verdict": "verdict"}  # fmt: skip
    return [Figure("differences", heading, reading, spec, alt, "differences", rows, columns)]


@row_figure
def _curves(row: table.Row, results: Sequence[RunResult], charts: Charts) -> list[Figure]:
    """Whatever changes over the steps. Bold lines are means over seeds, faint ones the seeds."""
    rows = {"steps": series.step_rows(results), "evaluations": series.evaluation_rows(results)}
    seeds = "bold is the mean over seeds, faint each seed; a line that ends early diverged"
    width = series.window(results)
    over = f"; averaged over windows of {width} steps" if width > 1 else ""
    loss, metric = f"{row.loss_name} per example", row.metric.removesuffix(SELECTED)
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
    figures = []
    for source, field, title, axis, reading in wanted:
        drawn = [m for m in charts.methods if any(r["method"] == m and r[field] is not None for r in rows[source])]
        if drawn:
            span = series.span(results, rows[source], field)
            spec = charts.curves(source, field, axis, span, dots=source == "evaluations")
            alt = describe(f"{title}, mean over seeds", last_values(rows[source], field))
            columns = {"method": "method", "seed": "seed", "step": "step", field: axis}
            key = f"{source}-{field}"
            figures.append(Figure(key, title, reading, spec, alt, source, rows[source], columns, drawn))
    return figures


@row_figure
def _costs(row: table.Row, results: Sequence[RunResult], charts: Charts) -> list[Figure]:
    rows = series.cost_rows(results)
    reading = "Bars are means over seeds of the time of a step, ticks the single seeds; shorter is cheaper."
    alt = describe("Milliseconds per step, mean over seeds", last_values(rows, "milliseconds"))
    columns = {"method": "method", "seed": "seed", "milliseconds": "milliseconds per step"}
    return [Figure("costs", "Cost per step", reading, charts.costs("costs"), alt, "costs", rows, columns)]


@row_figure
def _weights(row: table.Row, results: Sequence[RunResult], charts: Charts) -> list[Figure]:
    rows = series.weight_rows(results)
    drawn = [m for m in charts.methods if any(r["method"] == m for r in rows)]
    if not drawn:
        return []
    reading = (
        "How widely the method spreads its attention over the training examples: a peak at the dashed line "
        "treats all alike. The last bar also counts the half percent beyond it."
    )
    title = "Weights of the training examples"
    alt = describe(f"{title}, 1 is average", middles(rows))
    columns = {"method": "method", "low": "weight from", "high": "to", "share": "share of examples"}
    return [Figure("weights", title, reading, charts.weights("weights"), alt, "weights", rows, columns, drawn)]


@row_figure
def _detections(row: table.Row, results: Sequence[RunResult], charts: Charts) -> list[Figure]:
    found = {by: series.detection_rows(row, results, by) for by in NUMBERS}
    return [_detection(by, rows, charts) for by, rows in found.items() if rows]


def _detection(by: str, rows: list[Row], charts: Charts) -> Figure:
    key, title = f"{DETECTION}{by}", f"Wrong labels found by {by}"
    reading = (
        "Large dots are means with 95 % intervals, rings the seeds. Right of the dashed line, chance, wrong labels "
        "have the larger numbers, left of it the smaller ones."
    )
    alt = describe(f"{title}, AUROC, 0.5 is chance", estimates(rows))
    columns = {"method": "method", "seed": "seed", "value": "AUROC with this seed", "mean": "mean AUROC", **INTERVAL}
    return Figure(key, title, reading, charts.detection(key, f"AUROC of the {by}"), alt, key, rows, columns)


def axis_figures(rows: Mapping[Setting, table.Row], key: str = "axis", when: str = "") -> list[Figure]:
    """The figures over each axis (examples, wrong labels) that has several values while the other stands still.

    Args:
        rows: The comparisons.
        key: Sets these figures apart from others of the page.
        when: What to add to the name of each axis.
    """
    by_size, by_noise = defaultdict(list), defaultdict(list)
    for setting in rows:
        by_size[setting.train_size].append(setting)
        by_noise[setting.label_noise].append(setting)
    axes: list[tuple[str, dict[Setting, str]]] = []
    for settings in by_size.values():
        places = {s: f"{100 * s.label_noise:g} %" for s in sorted(settings, key=lambda s: s.label_noise)}
        axes.append((f"label noise, {settings[0].size_title}", places))
    for settings in by_noise.values():
        places = {s: str(s.train_size) for s in sorted(settings, key=lambda s: s.train_size)}
        axes.append((f"training examples, {settings[0].noise_title}", places))
    figures: list[Figure] = []
    for axis, places in axes:
        if len(places) > 1:
            figures += _over(f"{key}-{len(figures)}", f"{axis}{when}", {s: rows[s] for s in places}, places)
    return figures


def _over(key: str, axis: str, settings: Mapping[Setting, table.Row], places: Mapping[Setting, str]) -> list[Figure]:
    """Levels and differences at the places of an axis."""
    first = next(iter(settings.values()))
    methods = [cell.method for cell in first.begun]
    charts, levels, differences = Charts(methods, first.baseline), [], []
    for setting, row in settings.items():
        where = {"task": setting.title, "place": places[setting]}
        levels += [series.estimate_row(c.method, c.metric, **where) for c in row.begun if c.metric]
        differences += [
            series.estimate_row(c.method, c.difference.estimate, **where, verdict=WORDS[c.judgement])
            for c in row.others
            if c.difference
        ]
    wanted = [
        ("level", levels, methods, first.metric,
         "Means over seeds with 95 % intervals. Which methods differ is judged seed by seed, in the next chart."),
        ("difference", differences, [c.method for c in first.others], f"{first.metric} minus {first.baseline}'s",
         f"Paired difference to {first.baseline} with its 95 % interval, which is not corrected for the number of "
         "places where one looks; an interval across the dashed line may be noise."),
    ]  # fmt: skip
    figures = []
    for name, rows, named, title, reading in wanted:
        if rows:
            own, signed, heading = f"{key}-{name}", name == "difference", f"{title}, by {axis}"
            spec = charts.over(own, axis, list(places.values()), title, zero=signed)
            alt = describe(heading, estimates(rows, signed=signed))
            columns = {"method": "method", "place": axis, "mean": title, **INTERVAL}
            columns |= {"verdict": "verdict"} if signed else {}
            figures.append(Figure(own, heading, reading, spec, alt, own, rows, columns, named))
    return figures
