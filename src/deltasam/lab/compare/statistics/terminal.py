"""The comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from deltasam.lab.compare.after_rows import AfterCell, AfterRow
from deltasam.lab.compare.overview.cell_text import WORDS
from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.comparison import Comparison, MethodSummary

_STYLES = {"better": "bold green", "worse": "bold red", "diverged": "red"}


def comparison_table(comparison: Comparison) -> Table:
    """One row per method: metric, paired difference to the baseline, loss, calibration, cost, memory.

    Numbers are never broken; in 80 columns a long method spec takes several lines instead.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = Text(_caption(comparison)), "left"
    table.add_column("method", overflow="fold")
    # Cells are Text, never markup: a spec may hold brackets.
    for title in (comparison.metric, "vs baseline", comparison.loss_name, "ECE", "cost", "GiB"):
        table.add_column(Text(title), justify="right", overflow="fold")
    for method in comparison.methods:
        table.add_row(*_row(comparison, method))
    for column in table.columns[1:]:
        column.min_width = max(len(line) for cell in column.cells for line in str(cell).splitlines())
    return table


def after_table(comparison: Comparison, rows: Sequence[AfterRow]) -> Table:
    """One row per change of the weights and method: each metric, and its paired difference to the baseline."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption = Text("after training; vs: paired difference and 95 % interval, not corrected for their number")
    table.caption_justify = "left"
    table.add_column("weights")
    table.add_column("method", overflow="fold")
    for name in rows[0].cells:
        table.add_column(Text(comparison.loss_name if name == "loss" else name), justify="right")
        table.add_column(Text(f"vs {comparison.baseline}"), justify="right")
    for change, group in groupby(rows, key=lambda row: row.change):
        table.add_section()
        for number, row in enumerate(group):
            cells = [t for cell in row.cells.values() for t in _after_cell(cell, row.method == comparison.baseline)]
            table.add_row(Text("" if number else change), Text(row.method), *map(Text, cells))
    return table


def _after_cell(cell: AfterCell, baseline: bool) -> tuple[str, str]:
    """The mean, and the difference with its interval below."""
    mean = rounding.plain(cell.estimate.mean if cell.estimate else None)
    if cell.difference is None:
        return mean, "baseline" if baseline else rounding.MISSING
    return mean, "\n".join(filter(None, rounding.signed_interval(cell.difference.estimate)))


def _row(comparison: Comparison, m: MethodSummary) -> list[Text]:
    return [
        Text(m.method),
        Text(rounding.mean_margin(m.metric)),
        Text("baseline") if m.method == comparison.baseline else _difference(m),
        Text(rounding.plain(m.loss.mean if m.loss else None)),
        Text(rounding.plain(m.ece.mean if m.ece else None, significant=2)),
        Text(rounding.ratio(m.relative_seconds)),
        Text(rounding.gibibytes(m.peak_memory_mib)),
    ]


def _difference(m: MethodSummary) -> Text:
    """The difference with its verdict, and below it the interval."""
    # The page's word, but for "within noise": the column is to stay narrow.
    word = Text(WORDS["unknown"] if m.verdict == "unknown" else m.verdict, _STYLES.get(m.verdict, ""))
    if m.difference is None:
        return word
    mean, interval = rounding.signed_interval(m.difference.estimate)
    return Text("\n").join([Text(f"{mean} ").append_text(word), *([Text(interval)] if interval else [])])


def _caption(comparison: Comparison) -> str:
    counts = sorted({len(m.seeds) for m in comparison.methods})
    seeds = "1 seed" if counts == [1] else f"{'-'.join(str(n) for n in {counts[0]: 0, counts[-1]: 0})} seeds"
    return f"{seeds}; ± and [ ]: 95 % interval; cost: time per step over {comparison.baseline}; GiB: peak memory"
