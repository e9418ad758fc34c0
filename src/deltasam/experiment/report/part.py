"""One part of a report: a comparison with its charts and its examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltasam.experiment.comparison import Comparison
from deltasam.experiment.conclusion import conclusion
from deltasam.experiment.report.charts import Charts
from deltasam.experiment.report.figures import Figure, figures
from deltasam.experiment.report.filters import Filter, filters
from deltasam.experiment.report.series import Row
from deltasam.experiment.report.verdicts import Card, cards
from deltasam.experiment.results import ExampleRecord, RunResult

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
    """What the page says of one comparison.

    Attributes:
        key: Sets its charts apart from those of other parts.
        title: Of its setting or its folders; empty where there is only one.
        results: Its runs.
        comparison: Of its methods.
        colors: A CSS colour for each method.
        figures: Its charts.
        rows: What these draw, by the names they use.
        missing: What is not finished, in a sentence.
    """

    key: str
    title: str
    results: list[RunResult]
    comparison: Comparison
    colors: dict[str, str]
    figures: list[Figure]
    rows: dict[str, list[Row]]
    missing: str = ""

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


def make_part(
    position: int, title: str, results: list[RunResult], comparison: Comparison, charts: Charts, missing: str = ""
) -> Part:
    """The part at a position of the page, with the figures there is data for."""
    drawn = figures(comparison, results, charts)
    return Part(f"part-{position}", title, results, comparison, charts.colors, *drawn, missing)


def part_filters(parts: Iterable[Part]) -> list[Filter]:
    """What can be hidden on a page of these parts."""
    found = list(parts)
    return filters(
        method=(m.method for part in found for m in part.comparison.methods),
        seed=sorted({run.seed for part in found for run in part.results}),
        task=(part.title for part in found),
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
