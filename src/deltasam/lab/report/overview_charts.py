"""The charts of a table of experiments as Vega-Lite specifications."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt

from deltasam.lab.report.charts import Charts, Spec, bands, reference, spec, tip

_BAND = 24
_HEIGHT = 320
_LABELS = 130


class OverviewCharts(Charts):
    """Charts over several tasks, in the same order and colours of the methods throughout."""

    def forest(self, rows: str, span: list[float]) -> Spec:
        """One task: a row for each method with its mean difference and interval."""
        base = alt.Chart(alt.NamedData(rows)).encode(y=self._bands(self.methods), color=self._color())
        scale, axis = alt.Scale(domain=span, nice=False), alt.Axis(tickCount=4)
        x = {field: alt.X(f"{field}:Q", title=None, scale=scale, axis=axis) for field in ("low", "mean")}
        tooltip = [
            "method:N",
            tip("mean", "mean difference", "+.4~g"),
            tip("low", "95 % interval from", "+.4~g"),
            tip("high", "to", "+.4~g"),
            "verdict:N",
        ]
        interval = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2.5, strokeCap="round", aria=False)
        # Filled where a difference was found, hollow within noise.
        color = alt.Fill("method:N", scale=self._scale(), legend=None)
        fill = alt.condition("datum.decided", color, alt.value("transparent"))
        point = base.mark_point(size=75, strokeWidth=2, opacity=1).encode(x=x["mean"], fill=fill, tooltip=tooltip)
        layers = [reference(rows, 0), interval.encode(x=x["low"], x2="high:Q"), point]
        return spec(alt.LayerChart(layer=layers), **bands(_BAND))

    def ranks(self, rows: str, order: list[str]) -> Spec:
        """A row per method: a ring for its rank on each task, a dot for the mean, half the critical difference."""
        base = alt.Chart(alt.NamedData(rows)).encode(y=self._bands(order), color=self._color())
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
            single.encode(x=x["rank"], tooltip=["method:N", "task:N", tip("rank", "rank", ".1f")]),
            interval.encode(x=x["low"], x2="high:Q"),
            mean.encode(x=x["mean"], tooltip=["method:N", tip("mean", "mean rank", ".2f")]),
        ]
        return spec(alt.LayerChart(layer=layers), **bands(_BAND))

    def tradeoff(self, rows: str, title: str, cost: str, spans: Mapping[str, list[float]]) -> Spec:
        """Cost against the average difference within their spans, the methods numbered as in the legend."""
        base = alt.Chart(alt.NamedData(rows)).encode(
            x=alt.X(
                "cost:Q", title=cost, scale=alt.Scale(domain=spans["cost"], nice=False), axis=alt.Axis(tickCount=6)
            ),
            color=self._color(),
        )
        scale = alt.Scale(domain=spans["difference"], nice=False)
        y = {field: alt.Y(f"{field}:Q", title=title, scale=scale) for field in ("low", "mean", "top")}
        tooltip = ["method:N", tip("cost", "cost", ".2f"), tip("mean", title, "+.4~g"), "verdict:N"]
        once = alt.Chart(alt.NamedData(rows)).transform_aggregate(rows="count()")
        zero = once.mark_rule(strokeDash=[4, 3], color="var(--muted)", aria=False).encode(y=alt.datum(0))
        interval = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2.5, strokeCap="round", aria=False)
        number = base.mark_text(dy=-12, fontWeight=600).encode(
            y=y["top"], text="number:N", color=alt.value("var(--text)")
        )
        layers = [
            zero,
            interval.encode(y=y["low"], y2="high:Q"),
            base.mark_point(filled=True, size=110, opacity=1).encode(y=y["mean"], tooltip=tooltip),
            number,
        ]
        return spec(alt.LayerChart(layer=layers), height=_HEIGHT)

    def _bands(self, order: list[str]) -> alt.Y:
        """Labels beside the marks: in many small panels there is no room above them."""
        axis = alt.Axis(title=None, labelLimit=_LABELS, labelColor="var(--text)", ticks=False, domain=False)
        return alt.Y("method:N", sort=order, axis=axis)
