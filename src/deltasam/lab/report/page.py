"""The web page of comparisons: in several settings, from several folders, or on the tasks of a table.

It answers first, then shows the rows beside each other, then each row by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.compare.after_rows import AfterRow, after_rows
from deltasam.lab.compare.statistics.compare import compare, compare_runs, compare_together
from deltasam.lab.compare.statistics.conclusion import answer, details, row_conclusion
from deltasam.lab.compare.statistics.last_epoch import at_last_epoch, last_epoch_sentence
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.compare.statistics.table import Row, Table
from deltasam.lab.data.setting import Setting
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.figures import DETECTION, Figure, axis_figures, row_figures
from deltasam.lab.report.inspector import Inspection, inspect_runs
from deltasam.lab.report.rendering import write_page
from deltasam.lab.report.table_figures import panels, table_figures
from deltasam.lab.report.verdicts import Card, cards, table_cards
from deltasam.lab.train.results import RunResult, by_setting, each_no_better, runs_no_better


@dataclass(frozen=True)
class Part:
    """What the page says of one row by itself.

    Attributes:
        key: Sets its charts apart from those of other parts.
        title: Of its setting or its folders; empty where there is only one.
        results: Its runs.
        row: Their comparison.
        figures: Its charts.
        colors: A CSS colour for each method.
        missing: What is not finished, in a sentence.
    """

    key: str
    title: str
    results: Sequence[RunResult]
    row: Row
    figures: Sequence[Figure]
    colors: Mapping[str, str]
    missing: str = ""

    @property
    def answer(self) -> str:
        """What the comparison shows, in words, and whether there was anything to compare."""
        learned = runs_no_better(self.results)
        return " ".join(filter(None, [row_conclusion(self.row), learned]))

    @cached_property
    def later(self) -> str:
        """The same of the last epoch; empty where the answer is about it already."""
        return last_epoch_sentence(self.results, self.row.baseline)

    @cached_property
    def last_epoch(self) -> Row | None:
        """The comparison at the last epoch, where the main one is at a chosen one."""
        return at_last_epoch(self.results, self.row.baseline)

    @property
    def cards(self) -> list[Card]:
        """The same at a glance, method by method."""
        return cards(self.row)

    @cached_property
    def after(self) -> list[AfterRow]:
        """Every method with its weights rounded, pruned and with noise; empty where that was not measured."""
        return after_rows(self.row, self.results)

    @cached_property  # the page asks for them once for every run and ranking
    def inspections(self) -> list[Inspection]:
        """What one run of each method shows of its examples."""
        return inspect_runs(self.results)

    @property
    def rankings(self) -> list[str]:
        """By what examples are ranked."""
        return [by for by in NUMBERS if any(by in inspection.rankings for inspection in self.inspections)]

    @property
    def detected(self) -> list[str]:
        """By what it is known how well wrong labels are found; empty without label noise."""
        return [by for by in NUMBERS if any(by in cell.auroc for cell in self.row.cells)]

    @property
    def detection(self) -> list[Figure]:
        """The charts that show it."""
        return [figure for figure in self.figures if figure.key.startswith(DETECTION)]

    @property
    def charts(self) -> list[Figure]:
        """All others."""
        return [figure for figure in self.figures if not figure.key.startswith(DETECTION)]


@dataclass(frozen=True)
class Filter:
    """One thing by which a reader can hide rows of tables and charts.

    Attributes:
        dimension: Its name in rows (``seed``) and elements (``data-seed``).
        plural: Its heading.
        values: All there are, in order of appearance.
    """

    dimension: str
    plural: str
    values: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What a page has; what is empty is left out.

    Attributes:
        title: Of the window.
        heading: Of the page.
        answer: What all rows together show; empty where each has an answer of its own.
        details: What the answer rests on.
        no_better: By row, that its runs do no better than one class for every example.
        cards: The answer at a glance.
        colors: A CSS colour for each method.
        notes: What was left out.
        filters: What can be hidden.
        over: Charts over the axes of settings.
        table: All rows beside each other.
        panels: Its differences, a small chart for each row.
        figures: Its charts over all rows.
        parts: Each row by itself.
        correction: For what the p-values in the parts are corrected.
        groups: The tasks of the table, to list their runs and hyper-parameters.
    """

    title: str
    heading: str
    answer: str = ""
    details: str = ""
    no_better: Mapping[str, str] = field(default_factory=dict)
    cards: Sequence[Card] = ()
    colors: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    filters: Sequence[Filter] = ()
    over: Sequence[Figure] = ()
    table: Table | None = None
    panels: Sequence[Figure] = ()
    figures: Sequence[Figure] = ()
    parts: Sequence[Part] = ()
    correction: str = ""
    groups: Sequence[RunGroup] = ()

    def write(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write it as one self-contained file.

        Raises:
            UserError: The file cannot be written.
        """
        shared = {"table": [*self.panels, *self.figures]} if self.table else {"over": self.over}
        figures = {**shared, **{part.key: part.figures for part in self.parts}}
        write_page("report.html.jinja", path, figures=figures, config=config, page=self)


def write_report(results: Sequence[RunResult], config: Mapping[str, Any], path: Path) -> None:
    """Write the page of one comparison, with a part for each setting.

    Each setting is a comparison of its own, with a correction of its own.

    Args:
        results: One run per method and seed.
        config: The options the runs were made with; values may be nested mappings.
        path: The HTML file.

    Raises:
        UserError: No runs, runs that cannot be compared, or the file cannot be written.
    """
    settings = by_setting([run.labelled() for run in results]) or {None: []}
    titles = [setting.title if setting else "setting not recorded" for setting in settings]
    groups = [RunGroup.by_method(title, runs) for title, runs in zip(titles, settings.values(), strict=True)]
    rows = [compare_runs(group.results) for group in groups]
    parts = _parts(groups, rows)
    metric, count = rows[0].metric, len(rows)
    Page(
        title=f"{len(rows[0].begun)} methods, {metric}: comparison",
        heading=f"Training methods compared by {metric}{f', in {count} settings' if count > 1 else ''}",
        **(_answered_by(parts[0]) if count == 1 else {"colors": parts[0].colors}),
        filters=_part_filters(parts, "settings"),
        over=[
            *axis_figures({setting: row for setting, row in zip(settings, rows, strict=True) if setting}),
            *_axis_figures_later(settings),
        ],
        parts=parts,
        correction="the number of methods",
    ).write(path, config)


def _axis_figures_later(settings: Mapping[Setting | None, Sequence[RunResult]]) -> list[Figure]:
    """The figures over the axes of settings at the last epoch, where the main ones are at a chosen one."""
    rows = {setting: at_last_epoch(runs) for setting, runs in settings.items() if setting}
    return axis_figures({s: row for s, row in rows.items() if row}, key="later", when=", last epoch")


def write_comparisons(groups: Sequence[RunGroup], notes: Sequence[str], path: Path) -> None:
    """Write the page of several comparisons: a table of all first, then a part for each, with one correction.

    Args:
        groups: At least one.
        notes: What was left out, a line each.
        path: The HTML file.

    Raises:
        UserError: Runs that cannot be compared, or the file cannot be written.
    """
    table, count = compare_together(groups), len(groups)
    parts = _parts(groups, table.rows, Charts(table.methods, table.rows[0].baseline))
    several = {
        "heading": f"{count} comparisons of training methods",
        "answer": answer(table),
        "details": details(table),
        "no_better": each_no_better({group.name: group.results for group in groups}),
        "colors": parts[0].colors,
        "table": table,
    }
    one = {"heading": f"Training methods compared by {table.rows[0].metric}", **_answered_by(parts[0])}
    Page(
        title=f"{count} comparison{'s' if count > 1 else ''} of training methods",
        **(several if count > 1 else one),
        notes=notes,
        filters=_part_filters(parts, "comparisons"),
        parts=parts,
        correction=f"all {table.comparisons} differences on this page" if table.comparisons > 1 else "",
    ).write(path, {group.name: group.options for group in groups} if count > 1 else groups[0].options)


def write_table_page(groups: Sequence[RunGroup], title: str, facts: Mapping[str, Any], path: Path) -> None:
    """Write the page of a table of experiments, tasks x methods.

    Args:
        groups: The tasks in order; runs may be missing.
        title: What the table is called.
        facts: How the runs were made; values may be nested mappings.
        path: The HTML file.

    Raises:
        UserError: Groups that make no table, or the file cannot be written.
    """
    table = compare(groups)
    charts = Charts(table.methods, table.baseline)
    seeds = sorted({run.seed for group in groups for run in group.results})
    Page(
        title=f"{title}: {len(table.rows)} tasks, {len(table.methods)} methods",
        heading=title,
        answer=answer(table),
        details=details(table),
        no_better=each_no_better({group.name: group.results for group in groups}),
        cards=table_cards(table),
        colors=charts.colors,
        filters=_filters(methods=table.methods, seeds=seeds, tasks=[row.name for row in table.rows]),
        table=table,
        panels=panels(table, charts),
        figures=table_figures(table, charts),
        groups=groups,
    ).write(path, facts)


def _parts(groups: Sequence[RunGroup], rows: Sequence[Row], charts: Charts | None = None) -> list[Part]:
    """A part for each row; without charts that all share, each has colours of its own."""
    parts = []
    for position, (group, row) in enumerate(zip(groups, rows, strict=True)):
        own = charts or Charts([cell.method for cell in row.begun], row.baseline)
        title = group.name if len(groups) > 1 else ""
        figures = row_figures(row, group.results, own)
        parts.append(Part(f"part-{position}", title, group.results, row, figures, own.colors, group.missing_note))
    return parts


def _answered_by(part: Part) -> dict[str, Any]:
    """What a page of one part says first."""
    details = " ".join(filter(None, [part.later, part.missing]))
    return {"answer": part.answer, "details": details, "cards": part.cards, "colors": part.colors}


def _part_filters(parts: Sequence[Part], plural: str) -> list[Filter]:
    methods = [cell.method for part in parts for cell in part.row.begun]
    seeds = sorted({run.seed for part in parts for run in part.results})
    return _filters(methods=methods, seeds=seeds, tasks=[part.title for part in parts], tasks_are=plural)


def _filters(
    *, methods: Iterable[str], seeds: Iterable[int], tasks: Iterable[str], tasks_are: str = "tasks"
) -> list[Filter]:
    """A filter for each dimension of which there are several values."""
    all_ = [("method", "methods", methods), ("seed", "seeds", seeds), ("task", tasks_are, tasks)]
    filters = [Filter(name, plural, list(dict.fromkeys(map(str, values)))) for name, plural, values in all_]
    return [filter for filter in filters if len(filter.values) > 1]
