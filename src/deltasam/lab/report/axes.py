"""How methods change along an axis: with more examples, with more wrong labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from deltasam.lab.compare.overview.cell_text import WORDS
from deltasam.lab.compare.statistics.comparison import Comparison
from deltasam.lab.compare.statistics.paired import Estimate
from deltasam.lab.data.setting import Setting
from deltasam.lab.report.alt_text import estimates, told
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.figures import INTERVAL, Figure
from deltasam.lab.report.series import Row, number

Comparisons = Mapping[Setting, Comparison]


def axis_figures(comparisons: Comparisons) -> tuple[list[Figure], dict[str, list[Row]]]:
    """The figures over each axis that has several values, and the named data they draw; none for a single setting."""
    shown: list[Figure] = []
    rows: dict[str, list[Row]] = {}
    for title, part, at in _axes(comparisons):
        key = f"axis-{len(shown)}"
        found, drawn = _figures(key, title, part, at)
        shown += found
        rows |= drawn
    return shown, rows


def _axes(comparisons: Comparisons) -> list[tuple[str, Comparisons, dict[Setting, str]]]:
    """Each axis along which some settings differ while the other stands still: title, these, and where each stands."""
    found = []
    noise: dict[int, list[Setting]] = defaultdict(list)
    size: dict[float, list[Setting]] = defaultdict(list)
    for setting in comparisons:
        noise[setting.train_size].append(setting)
        size[setting.label_noise].append(setting)
    for settings in noise.values():
        places = {s: f"{100 * s.label_noise:g} %" for s in sorted(settings, key=lambda s: s.label_noise)}
        found.append((f"label noise, {settings[0].size_title}", places))
    for settings in size.values():
        places = {s: str(s.train_size) for s in sorted(settings, key=lambda s: s.train_size)}
        found.append((f"training examples, {settings[0].noise_title}", places))
    return [(title, {s: comparisons[s] for s in at}, at) for title, at in found if len(at) > 1]


def _figures(
    key: str, axis: str, comparisons: Comparisons, at: dict[Setting, str]
) -> tuple[list[Figure], dict[str, list[Row]]]:
    first = next(iter(comparisons.values()))
    methods = [m.method for m in first.methods]
    charts = Charts(methods, first.baseline)
    levels = [
        _row(m.method, setting, at, m.metric)
        for setting, comparison in comparisons.items()
        for m in comparison.methods
        if m.metric
    ]
    differences = [
        _row(m.method, setting, at, m.difference.estimate) | {"verdict": WORDS[m.verdict]}
        for setting, comparison in comparisons.items()
        for m in comparison.others
        if m.difference
    ]
    order = list(at.values())
    wanted = [
        ("level", levels, methods, first.metric,
         "Means over seeds with 95 % intervals. Which methods differ is judged seed by seed, in the next chart."),
        ("difference", differences, [m.method for m in first.others], f"{first.metric} minus {first.baseline}'s",
         f"Paired difference to {first.baseline} with its 95 % interval, which is not corrected for the number of "
         "places where one looks; an interval across the dashed line may be noise."),
    ]  # fmt: skip
    shown, rows = [], {}
    for name, drawn, named, title, reading in wanted:
        if drawn:
            rows[f"{key}-{name}"] = drawn
            signed, heading = name == "difference", f"{title}, by {axis}"
            spec = charts.over(f"{key}-{name}", axis, order, title, zero=signed)
            alt = told(heading, estimates(drawn, signed=signed))
            columns = {"method": "method", "place": axis, "mean": title, **INTERVAL}
            columns |= {"verdict": "verdict"} if signed else {}
            shown.append(Figure(f"{key}-{name}", heading, reading, spec, alt, f"{key}-{name}", columns, named))
    return shown, rows


def _row(method: str, setting: Setting, at: dict[Setting, str], estimate: Estimate) -> Row:
    values = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    place = {"method": method, "task": setting.title, "place": at[setting]}
    return place | {key: number(value) for key, value in values.items()}
