"""Write the report: one HTML file that needs nothing else, with a part for each setting."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from deltasam.experiment import rounding
from deltasam.experiment.comparison import Comparison
from deltasam.experiment.report.axes import axis_figures
from deltasam.experiment.report.charts import Charts
from deltasam.experiment.report.figures import Figure, figures
from deltasam.experiment.report.series import Row
from deltasam.experiment.results import ExampleRecord, RunResult, write_atomically
from deltasam.experiment.setting import Setting, by_setting
from deltasam.experiment.statistics import compare, conclusion

_EXAMPLES = 10


@dataclass(frozen=True)
class ExampleTable:
    """The most and the least weighted examples of one run."""

    method: str
    seed: int
    heaviest: list[ExampleRecord]
    lightest: list[ExampleRecord]


@dataclass(frozen=True)
class Part:
    """What the page says of the runs of one setting.

    Attributes:
        key: Sets its charts apart from those of other parts.
        title: Of its setting; empty where there is only one.
        results: Its runs.
        comparison: Of its methods.
        colors: A CSS colour for each method.
        figures: Its charts.
        rows: What these draw, by the names they use.
    """

    key: str
    title: str
    results: list[RunResult]
    comparison: Comparison
    colors: dict[str, str]
    figures: list[Figure]
    rows: dict[str, list[Row]]

    @property
    def answer(self) -> str:
        """What the comparison shows, in words."""
        return conclusion(self.comparison)

    @property
    def examples(self) -> list[ExampleTable]:
        """The most and the least weighted examples of each method that weights them."""
        return _examples(self.results)


def write_report(results: Sequence[RunResult], config: Mapping[str, Any], path: Path) -> None:
    """Write the comparison of the runs as one self-contained web page.

    Args:
        results: One run per method and seed.
        config: The options the runs were made with; values may be nested mappings.
        path: The HTML file.

    Raises:
        UserError: No runs, runs that cannot be compared, or the file cannot be written.
    """
    settings = by_setting([r.labelled() for r in results]) or {None: []}
    parts = [_part(i, setting, runs, alone=len(settings) < 2) for i, (setting, runs) in enumerate(settings.items())]
    over, over_rows = axis_figures({s: part.comparison for s, part in zip(settings, parts, strict=True) if s})
    data = {part.key: _data(part.figures, part.rows) for part in parts} | {"over": _data(over, over_rows)}
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(parts=parts, over=over, data=data, config=dict(_flat(config)), script=_script())
    )
    # Data may hold halves of surrogate pairs, which no UTF-8 file can.
    write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))


def _part(position: int, setting: Setting | None, results: list[RunResult], *, alone: bool) -> Part:
    comparison = compare(results)
    charts = Charts([m.method for m in comparison.methods], comparison.baseline)
    title = "" if alone else setting.title if setting else "setting not recorded"
    return Part(f"part-{position}", title, results, comparison, charts.colors, *figures(comparison, results, charts))


def _data(shown: Sequence[Figure], rows: Mapping[str, list[Row]]) -> dict[str, Any]:
    return {"charts": {figure.key: figure.spec for figure in shown}, "datasets": rows}


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deltasam.experiment.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": rounding.plain,
        "mean_margin": rounding.mean_margin,
        "signed_interval": rounding.signed_interval,
        "p_value": rounding.p_value,
        "ratio": rounding.ratio,
        "gibibytes": rounding.gibibytes,
    }
    # tojson escapes what could end a script element; browsers refuse NaN, so writing it is an error.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


@functools.cache
def _script() -> str:
    """Vega and the page's own script as one module; bundling takes a second, so once per process."""
    own = resources.files("deltasam.experiment.report").joinpath("report.js").read_text(encoding="utf-8")
    bundle: str = vl_convert.javascript_bundle(own)
    return bundle


def _examples(results: Sequence[RunResult]) -> list[ExampleTable]:
    """From the first run of each method that weights examples: half heaviest, half lightest."""
    first: dict[str, RunResult] = {}
    for run in results:
        if run.examples:
            first.setdefault(run.method, run)
    tables = []
    for run in first.values():
        ranked = sorted(run.examples, key=lambda example: example.weight, reverse=True)
        half = (len(ranked) + 1) // 2
        tables.append(ExampleTable(run.method, run.seed, ranked[:half][:_EXAMPLES], ranked[half:][::-1][:_EXAMPLES]))
    return tables


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options under dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
