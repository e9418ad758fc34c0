"""The page of a whole table of experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam.lab.compare.overview import TableRow, answer, details, survey
from deltasam.lab.report.filters import filters
from deltasam.lab.report.overview_charts import OverviewCharts
from deltasam.lab.report.overview_figures import across_tasks, panels
from deltasam.lab.report.rendering import drawn, write_page
from deltasam.lab.report.verdicts import overview_cards
from deltasam.lab.train.results import each_no_better


def write_table_page(rows: Sequence[TableRow], title: str, facts: Mapping[str, Any], path: Path) -> None:
    """Write a table of experiments, tasks x methods, as one self-contained web page.

    Args:
        rows: The tasks in order; runs may be missing.
        title: What the table is called.
        facts: How the runs were made; values may be nested mappings.
        path: The HTML file.

    Raises:
        UserError: Rows that make no table, or the file cannot be written.
    """
    overview = survey(rows)
    charts = OverviewCharts(overview.methods, overview.baseline)
    small, small_rows = panels(overview, charts)
    large, large_rows = across_tasks(overview, charts)
    write_page(
        "overview.html.jinja",
        path,
        data={"table": drawn([*small, *large], {**small_rows, **large_rows})},
        config=facts,
        title=title,
        answer=answer(overview),
        details=details(overview),
        no_better=each_no_better({row.name: row.results for row in rows}),
        cards=overview_cards(overview),
        overview=overview,
        table_rows=rows,
        colors=charts.colors,
        panels=small,
        figures=large,
        filters=filters(
            methods=overview.methods,
            seeds=sorted({run.seed for row in rows for run in row.results}),
            tasks=(row.name for row in rows),
        ),
    )
