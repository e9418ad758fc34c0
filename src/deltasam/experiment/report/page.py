"""Write the report: one HTML file that needs nothing else."""

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
from deltasam.experiment.report.charts import Charts
from deltasam.experiment.report.figures import figures
from deltasam.experiment.results import ExampleRecord, RunResult, write_atomically
from deltasam.experiment.statistics import compare, conclusion

_EXAMPLES = 10


@dataclass(frozen=True)
class ExampleTable:
    """The most and the least weighted examples of one run."""

    method: str
    seed: int
    heaviest: list[ExampleRecord]
    lightest: list[ExampleRecord]


def write_report(results: Sequence[RunResult], config: Mapping[str, Any], path: Path) -> None:
    """Write the comparison of the runs as one self-contained web page.

    Args:
        results: One run per method and seed.
        config: The options the runs were made with; values may be nested mappings.
        path: The HTML file.

    Raises:
        UserError: No runs, runs that cannot be compared, or the file cannot be written.
    """
    results = [r.labelled() for r in results]
    comparison = compare(results)
    charts = Charts([m.method for m in comparison.methods], comparison.baseline)
    shown, rows = figures(comparison, results, charts)
    page = _environment().get_template("report.html.jinja").render(
        answer=conclusion(comparison),
        comparison=comparison,
        colors=charts.colors,
        figures=shown,
        data={"datasets": rows, "charts": {figure.key: figure.spec for figure in shown}},
        examples=_examples(results),
        results=results,
        config=dict(_flat(config)),
        script=_script(),
    )  # fmt: skip
    # Data may hold halves of surrogate pairs, which no UTF-8 file can.
    write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))


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
