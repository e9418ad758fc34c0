"""One page about several comparisons: a table of all first, then a part for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltasam.lab.compare.overview import answer, details
from deltasam.lab.folders.comparison import Gathered
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.part import make_part, part_filters
from deltasam.lab.report.rendering import drawn, write_page
from deltasam.lab.report.together import judge
from deltasam.lab.train.results import each_no_better


def write_comparisons(gathered: Sequence[Gathered], notes: Sequence[str], path: Path) -> None:
    """Write comparisons as one self-contained web page.

    Args:
        gathered: At least one.
        notes: What was left out, a line each.
        path: The HTML file.

    Raises:
        UserError: Runs that cannot be compared, or the file cannot be written.
    """
    overview, comparisons = judge(gathered)
    methods = [cell.method for cell in overview.rows[0].cells]
    charts = Charts(methods, comparisons[0].baseline)
    alone = len(gathered) == 1
    parts = [
        make_part(i, "" if alone else g.title, g.results, comparison, charts, g.missing_note)
        for i, (g, comparison) in enumerate(zip(gathered, comparisons, strict=True))
    ]
    write_page(
        "comparisons.html.jinja",
        path,
        data={part.key: drawn(part.figures, part.rows) for part in parts},
        config=gathered[0].options if alone else {g.title: g.options for g in gathered},
        parts=parts,
        filters=part_filters(parts, "comparison"),
        overview=overview,
        methods=methods,
        links={part.title: part.key for part in parts},
        answer=answer(overview),
        details=details(overview),
        no_better=each_no_better({g.title: g.results for g in gathered}),
        notes=notes,
    )
