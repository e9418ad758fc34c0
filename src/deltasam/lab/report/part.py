"""One part of a report: a comparison with its charts and its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.compare.after_rows import AfterRow, after_rows
from deltasam.lab.compare.statistics.comparison import Comparison
from deltasam.lab.compare.statistics.conclusion import conclusion
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.figures import DETECTION, Figure, figures
from deltasam.lab.report.filters import Filter, filters
from deltasam.lab.report.inspector import Inspection, has_predictions, inspect, rankings_in
from deltasam.lab.report.series import Row
from deltasam.lab.report.verdicts import Card, cards
from deltasam.lab.train.results import RunResult, runs_no_better


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
        """What the comparison shows, in words, and whether there was anything to compare."""
        learned = runs_no_better(self.results)
        return " ".join(filter(None, [conclusion(self.comparison, unfinished=bool(self.missing)), learned]))

    @property
    def cards(self) -> list[Card]:
        """The same at a glance, method by method."""
        return cards(self.comparison)

    @property
    def inspections(self) -> list[Inspection]:
        """What one run of each method shows of its examples."""
        return inspect(self.results)

    @property
    def rankings(self) -> list[str]:
        """By what examples are ranked."""
        return rankings_in(self.inspections)

    @property
    def predicted(self) -> bool:
        """Whether there are predictions to show."""
        return has_predictions(self.inspections)

    @property
    def after(self) -> list[AfterRow]:
        """Every method with its weights rounded, pruned and with noise; empty where that was not measured."""
        return after_rows(self.comparison, self.results)

    @property
    def detected(self) -> list[str]:
        """By what it is known how well wrong labels are found; empty without label noise."""
        return [by for by in NUMBERS if any(by in m.auroc for m in self.comparison.methods)]

    @property
    def detection(self) -> list[Figure]:
        """The charts that show it."""
        return [figure for figure in self.figures if figure.key.startswith(DETECTION)]

    @property
    def charts(self) -> list[Figure]:
        """All others."""
        return [figure for figure in self.figures if not figure.key.startswith(DETECTION)]


def make_part(
    position: int, title: str, results: list[RunResult], comparison: Comparison, charts: Charts, missing: str = ""
) -> Part:
    """The part at a position of the page, with the figures there is data for."""
    drawn = figures(comparison, results, charts)
    return Part(f"part-{position}", title, results, comparison, charts.colors, *drawn, missing)


def part_filters(parts: Sequence[Part], kind: str) -> list[Filter]:
    """What can be hidden on a page of parts of a kind: settings, comparisons."""
    return filters(
        kind,
        methods=(m.method for part in parts for m in part.comparison.methods),
        seeds=sorted({run.seed for part in parts for run in part.results}),
        tasks=(part.title for part in parts),
    )
