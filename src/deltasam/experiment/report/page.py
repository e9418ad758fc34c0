"""The report of one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam.experiment.report.charts import Charts
from deltasam.experiment.report.figures import figures
from deltasam.experiment.report.rendering import write_page
from deltasam.experiment.results import ExampleRecord, RunResult
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
    write_page(
        "report.html.jinja",
        path,
        charts={figure.key: figure.spec for figure in shown},
        rows=rows,
        config=config,
        answer=conclusion(comparison),
        comparison=comparison,
        colors=charts.colors,
        figures=shown,
        examples=_examples(results),
        results=results,
    )


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
