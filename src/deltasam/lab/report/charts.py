"""The charts of the page as Vega-Lite specifications.

Colours are CSS variables, which the browser resolves: the page's light, dark and print styles reach into the
charts without drawing them again. Data is named, not embedded, so charts can share it, and rows can be hidden by
handing over fewer of them: nothing is averaged here, so what is left stays what it was. A row without a seed is a
statistic over all of them.

A chart is heard as its description and has a table; of its marks only those are read out that stand for a number of
their own, not the hundreds of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

Spec = dict[str, Any]

_ROW_HEIGHT = 46
_PANEL_ROW_HEIGHT = 24
_CURVE_HEIGHT = 260
_TRADEOFF_HEIGHT = 320
_LABELS = 130


class Charts:
    """Builds charts that agree on the methods' order and colours.

    Args:
        methods: Every method in order; the first ones get the most distinct colours.
        baseline: The one that gets the neutral colour.
    """

    def __init__(self, methods: Sequence[str], baseline: str) -> None:
        self.methods = list(methods)
        others = [m for m in self.methods if m != baseline]
        self.colors = {m: f"var(--series-{others.index(m) % 9 + 1})" for m in others}
        self.colors[baseline] = "var(--series-0)"

    def curves(self, rows: str, field: str, title: str, span: list[float] | None, dots: bool) -> Spec:
        """A bold line for each method's mean over seeds, a faint one for every seed, against the step.

        Without ``dots`` the points of the lines are there for the pointer to find, but not seen.
        """
        scale = alt.Scale(domain=span, zero=False, nice=True) if span else alt.Scale(zero=False)
        tooltip = ["method:N", _tip("step", "step", ".0f"), _tip(field, title, ".4~g")]
        base = alt.Chart(alt.NamedData(rows)).encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6, format="~s")), color=self._color()
        )
        y = alt.Y(f"{field}:Q", title=title, scale=scale)
        seeds = base.transform_filter("isValid(datum.seed)").mark_line(
            strokeWidth=1, opacity=0.3, clip=True, aria=False
        )
        mean = base.transform_filter("!isValid(datum.seed)").mark_line(
            strokeWidth=2.5, clip=True, aria=False, point=alt.OverlayMarkDef(size=24, opacity=int(dots), aria=False)
        )
        layers = [seeds.encode(y=y, detail="seed:N"), mean.encode(y=y, tooltip=tooltip)]
        return _finished(alt.LayerChart(layer=layers), height=_CURVE_HEIGHT)

    def differences(self, rows: str, title: str, span: list[float]) -> Spec:
        """One row for each method: mean difference with interval, and below it the seeds."""
        return self._intervals(rows, title, span, line=0, number="+.4~g", more=["verdict:N"])

    def detection(self, rows: str, title: str) -> Spec:
        """One row for each method: how well wrong labels are found, against chance."""
        return self._intervals(rows, title, [0, 1], line=0.5, number=".3f", more=[])

    def _intervals(
        self, rows: str, title: str, span: list[float], *, line: float, number: str, more: list[str]
    ) -> Spec:
        """A large dot for each method's mean on its interval, small rings for the seeds, a dashed line."""
        base = alt.Chart(alt.NamedData(rows)).encode(y=self._rows(), color=self._color())
        scale, axis = alt.Scale(domain=span, nice=False), alt.Axis(tickCount=5)
        x = {field: alt.X(f"{field}:Q", title=title, scale=scale, axis=axis) for field in ("low", "mean", "value")}
        interval = base.transform_filter("isValid(datum.low)").mark_rule(
            strokeWidth=3, strokeCap="round", clip=True, aria=False
        )
        mean = base.transform_filter("isValid(datum.mean)").mark_point(filled=True, size=110, opacity=1)
        seeds = base.transform_filter("isValid(datum.value)").mark_point(size=30, yOffset=11, strokeWidth=1.5)
        layers = [
            _rule(rows, x=alt.datum(line)),
            interval.encode(x=x["low"], x2="high:Q"),
            mean.encode(x=x["mean"], tooltip=["method:N", *_estimate_tips("mean", number), *more]),
            seeds.encode(x=x["value"], tooltip=["method:N", "seed:N", _tip("value", "this seed", number)]),
            self._labels(rows),
        ]
        return _finished(alt.LayerChart(layer=layers), **_bands(_ROW_HEIGHT))

    def over(self, rows: str, axis: str, places: Sequence[str], title: str, zero: bool) -> Spec:
        """A line per method through its means at each place of an axis, with intervals; side by side, to be told apart.

        With ``zero`` a dashed line stands where there is no difference.
        """
        apart = alt.Scale(paddingInner=0.6, paddingOuter=0.4)  # more between places than between methods
        base = alt.Chart(alt.NamedData(rows)).encode(
            x=alt.X("place:O", title=axis, sort=list(places), axis=alt.Axis(labelAngle=0), scale=apart),
            xOffset=alt.XOffset("method:N", sort=self.methods),
            color=self._color(),
        )
        y = {field: alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=zero)) for field in ("mean", "low")}
        interval = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, strokeCap="round", aria=False)
        number = "+.4~g" if zero else ".4~g"
        tooltip = ["method:N", alt.Tooltip("place:O", title=axis), *_estimate_tips(title, number)]
        layers = [
            base.mark_line(strokeWidth=1.5, opacity=0.5, aria=False).encode(y=y["mean"]),
            interval.encode(y=y["low"], y2="high:Q"),
            base.mark_point(filled=True, size=70, opacity=1).encode(y=y["mean"], tooltip=tooltip),
        ]
        if zero:
            line = alt.Chart(alt.NamedData(rows)).mark_rule(strokeDash=[4, 3], color="var(--muted)", aria=False)
            layers.insert(0, line.encode(y=alt.datum(0)))
        return _finished(alt.LayerChart(layer=layers), height=_CURVE_HEIGHT)

    def costs(self, rows: str) -> Spec:
        """One row per method: a bar for the mean time per step, a tick for every seed."""
        base = alt.Chart(alt.NamedData(rows)).encode(y=self._rows(), color=self._color())
        title = "milliseconds per step"
        mean = base.transform_filter("!isValid(datum.seed)")
        bars = mean.mark_bar(height=10, yOffset=6, cornerRadiusEnd=3).encode(
            x=alt.X("milliseconds:Q", title=title, axis=alt.Axis(tickCount=5)),
            tooltip=["method:N", _tip("milliseconds", title, ".4~g")],
        )
        each = base.transform_filter("isValid(datum.seed)")
        seeds = each.mark_tick(color="var(--text)", thickness=1.5, size=16, yOffset=6).encode(
            x="milliseconds:Q",
            color=alt.value("var(--text)"),
            tooltip=["method:N", "seed:N", _tip("milliseconds", title, ".4~g")],
        )
        return _finished(alt.LayerChart(layer=[bars, seeds, self._labels(rows)]), **_bands(_ROW_HEIGHT))

    def weights(self, rows: str) -> Spec:
        """A stepped outline per method: the share of examples at each weight."""
        base = alt.Chart(alt.NamedData(rows)).encode(
            x=alt.X("low:Q", title="weight of the example (1 is average)", scale=alt.Scale(zero=False))
        )
        outline = base.mark_area(interpolate="step-after", line=True, fillOpacity=0.18).encode(
            y=alt.Y("share:Q", title="share of examples", axis=alt.Axis(format=".0%"), stack=None),
            color=self._color(),
            tooltip=[
                "method:N",
                _tip("low", "weight from", ".3f"),
                _tip("high", "to", ".3f"),
                _tip("share", "share of examples", ".1%"),
            ],
        )
        return _finished(alt.LayerChart(layer=[_rule(rows, x=alt.datum(1)), outline]), height=_CURVE_HEIGHT)

    def forest(self, rows: str, span: list[float]) -> Spec:
        """One task: a row for each method with its mean difference and interval."""
        base = alt.Chart(alt.NamedData(rows)).encode(y=self._labelled(self.methods), color=self._color())
        scale, axis = alt.Scale(domain=span, nice=False), alt.Axis(tickCount=4)
        x = {field: alt.X(f"{field}:Q", title=None, scale=scale, axis=axis) for field in ("low", "mean")}
        tooltip = ["method:N", *_estimate_tips("mean difference", "+.4~g"), "verdict:N"]
        interval = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2.5, strokeCap="round", aria=False)
        # Filled where a difference was found, hollow within noise.
        color = alt.Fill("method:N", scale=self._scale(), legend=None)
        fill = alt.condition("datum.decided", color, alt.value("transparent"))
        point = base.mark_point(size=75, strokeWidth=2, opacity=1).encode(x=x["mean"], fill=fill, tooltip=tooltip)
        layers = [_rule(rows, x=alt.datum(0)), interval.encode(x=x["low"], x2="high:Q"), point]
        return _finished(alt.LayerChart(layer=layers), **_bands(_PANEL_ROW_HEIGHT))

    def ranks(self, rows: str, order: list[str]) -> Spec:
        """A row per method: a ring for its rank on each task, a dot for the mean, half the critical difference."""
        base = alt.Chart(alt.NamedData(rows)).encode(y=self._labelled(order), color=self._color())
        scale = alt.Scale(domain=[0.5, len(order) + 0.5], nice=False)
        axis = alt.Axis(values=list(range(1, len(order) + 1)), format=".0f")
        x = {
            field: alt.X(f"{field}:Q", title="rank, 1 is best", scale=scale, axis=axis)
            for field in ("low", "mean", "rank")
        }
        single = base.transform_filter("isValid(datum.rank)").mark_point(
            size=24, strokeWidth=1.2, opacity=0.6, yOffset=7
        )
        interval = base.transform_filter("isValid(datum.low)").mark_rule(
            strokeWidth=3, strokeCap="round", clip=True, yOffset=-3, aria=False
        )
        mean = base.transform_filter("isValid(datum.mean)").mark_point(filled=True, size=90, opacity=1, yOffset=-3)
        layers = [
            single.encode(x=x["rank"], tooltip=["method:N", "task:N", _tip("rank", "rank", ".1f")]),
            interval.encode(x=x["low"], x2="high:Q"),
            mean.encode(x=x["mean"], tooltip=["method:N", _tip("mean", "mean rank", ".2f")]),
        ]
        return _finished(alt.LayerChart(layer=layers), **_bands(_PANEL_ROW_HEIGHT))

    def tradeoff(self, rows: str, title: str, cost: str, spans: Mapping[str, list[float]]) -> Spec:
        """Cost against the average difference within their spans, the methods numbered as in the legend."""
        costs = alt.Scale(domain=spans["cost"], nice=False)
        base = alt.Chart(alt.NamedData(rows)).encode(
            x=alt.X("cost:Q", title=cost, scale=costs, axis=alt.Axis(tickCount=6)), color=self._color()
        )
        scale = alt.Scale(domain=spans["difference"], nice=False)
        y = {field: alt.Y(f"{field}:Q", title=title, scale=scale) for field in ("low", "mean", "top")}
        tooltip = ["method:N", _tip("cost", "cost", ".2f"), _tip("mean", title, "+.4~g"), "verdict:N"]
        interval = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2.5, strokeCap="round", aria=False)
        number = base.mark_text(dy=-12, fontWeight=600).encode(
            y=y["top"], text="number:N", color=alt.value("var(--text)")
        )
        layers = [
            _rule(rows, y=alt.datum(0)),
            interval.encode(y=y["low"], y2="high:Q"),
            base.mark_point(filled=True, size=110, opacity=1).encode(y=y["mean"], tooltip=tooltip),
            number,
        ]
        return _finished(alt.LayerChart(layer=layers), height=_TRADEOFF_HEIGHT)

    def _color(self) -> alt.Color:
        return alt.Color("method:N", scale=self._scale(), legend=None)

    def _scale(self) -> alt.Scale:
        return alt.Scale(domain=self.methods, range=[self.colors[m] for m in self.methods])

    def _rows(self) -> alt.Y:
        """A band per method without an axis: labels stand above the marks, where a phone has room for them."""
        return alt.Y("method:N", sort=self.methods, axis=None)

    def _labelled(self, order: list[str]) -> alt.Y:
        """Labels beside the marks: in many small panels there is no room above them."""
        axis = alt.Axis(title=None, labelLimit=_LABELS, labelColor="var(--text)", ticks=False, domain=False)
        return alt.Y("method:N", sort=order, axis=axis)

    def _labels(self, rows: str) -> alt.Chart:
        each = alt.Chart(alt.NamedData(rows)).transform_aggregate(groupby=["method"])
        # Without a limit a long label would take the chart's width for itself.
        limit = alt.ExprRef("width")
        text = each.mark_text(align="left", dy=-13, fontWeight=600, color="var(--text)", limit=limit)
        return text.encode(x=alt.value(0), y=self._rows(), text="method:N")


def _rule(rows: str, **place: object) -> alt.Chart:
    """A dashed line at the value that means no difference, once for all rows."""
    once = alt.Chart(alt.NamedData(rows)).transform_aggregate(rows="count()")
    return once.mark_rule(strokeDash=[4, 3], color="var(--muted)", aria=False).encode(**place)


def _tip(field: str, title: str, number_format: str) -> alt.Tooltip:
    """One line of a tooltip."""
    return alt.Tooltip(f"{field}:Q", title=title, format=number_format)


def _estimate_tips(mean: str, number_format: str) -> list[alt.Tooltip]:
    """A mean and its interval in a tooltip."""
    titles = {"mean": mean, "low": "95 % interval from", "high": "to"}
    return [_tip(field, title, number_format) for field, title in titles.items()]


def _bands(height: int) -> dict[str, Any]:
    """As high as so many pixels for each method in the rows that are shown, which the page's script counts."""
    return {"usermeta": {"band": height}}


def _finished(chart: alt.LayerChart, **height: object) -> Spec:
    """The finished specification, as wide as its place on the page, with a ``height`` or ``bands``."""
    sized = chart.properties(width="container", background="transparent", **height)
    styled = (
        sized.configure(font="system-ui, sans-serif", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="var(--muted)",
            titleColor="var(--muted)",
            gridColor="var(--grid)",
            domainColor="var(--grid)",
            tickColor="var(--grid)",
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=8,
        )
        .configure_text(font="system-ui, sans-serif", fontSize=12)
    )
    finished: Spec = styled.to_dict()
    return finished
