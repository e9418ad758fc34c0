"""The table of experiments in Markdown, for documentation."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from deltasam.lab.compare.overview import cell_text
from deltasam.lab.compare.overview.overview import Cell, Overview


def markdown_table(overview: Overview) -> str:
    """Tasks x methods with the numbers of the page, and below it what the marks mean."""
    lines = [
        _line(["task", *overview.methods]),
        _line(["---", *["--:"] * len(overview.methods)], escaped=True),
        *(_line([cell_text.row_title(row.metrics, row.name), *map(_cell, row.cells)]) for row in overview.rows),
        *(_line([title, *texts]) for title, texts in cell_text.footers(overview)),
    ]
    return "\n".join([*lines, "", cell_text.legend(overview) + ".", ""])


def _cell(cell: Cell) -> str:
    return "; ".join(filter(None, [cell_text.main_text(cell), cell_text.others_text(cell)]))


def _line(cells: Sequence[str], *, escaped: bool = False) -> str:
    return f"| {' | '.join(cells if escaped else map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that no reader of Markdown takes for markup, on one line."""
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
