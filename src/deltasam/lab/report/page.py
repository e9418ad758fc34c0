"""The report of one comparison, with a part for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam.lab.compare.statistics.statistics import compare
from deltasam.lab.data.setting import Setting
from deltasam.lab.report.axes import axis_figures
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.part import Part, make_part, part_filters
from deltasam.lab.report.rendering import drawn, write_page
from deltasam.lab.train.results import RunResult, by_setting


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
    shown = part_filters(parts, "setting")
    write_page("report.html.jinja", path, data=data, config=config, parts=parts, over=over, filters=shown)


def _part(position: int, setting: Setting | None, results: list[RunResult], *, alone: bool) -> Part:
    comparison = compare(results)
    charts = Charts([m.method for m in comparison.methods], comparison.baseline)
    title = "" if alone else setting.title if setting else "setting not recorded"
    return make_part(position, title, results, comparison, charts)
