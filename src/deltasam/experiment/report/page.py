"""The report of one comparison, with a part for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam.experiment.comparison import Comparison
from deltasam.experiment.report.axes import axis_figures
from deltasam.experiment.report.charts import Charts
from deltasam.experiment.report.figures import Figure, figures
from deltasam.experiment.report.filters import filters
from deltasam.experiment.report.rendering import drawn, write_page
from deltasam.experiment.report.series import Row
from deltasam.experiment.report.verdicts import Card, cards
from deltasam.experiment.results import ExampleRecord, RunResult
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
    def cards(self) -> list[Card]:
        """The same at a glance, method by method."""
        return cards(self.comparison)

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
    data = {part.key: drawn(part.figures, part.rows) for part in parts} | {"over": drawn(over, over_rows)}
    shown = filters(
        method=(m.method for part in parts for m in part.comparison.methods),
        seed=(run.seed for part in parts for run in part.results),
        task=(part.title for part in parts),
    )
    write_page("report.html.jinja", path, data=data, config=config, parts=parts, over=over, filters=shown)


def _part(position: int, setting: Setting | None, results: list[RunResult], *, alone: bool) -> Part:
    comparison = compare(results)
    charts = Charts([m.method for m in comparison.methods], comparison.baseline)
    title = "" if alone else setting.title if setting else "setting not recorded"
    return Part(f"part-{position}", title, results, comparison, charts.colors, *figures(comparison, results, charts))


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
