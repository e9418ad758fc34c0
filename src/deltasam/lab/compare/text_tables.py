"""Tables of methods as text: in the terminal, one row in detail or rows x methods, and in Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from deltasam.lab.compare.after_rows import AfterCell, AfterRow
from deltasam.lab.compare.statistics import formatting
from deltasam.lab.compare.statistics.formatting import MARKS, MISSING, WORDS, format_number
from deltasam.lab.compare.statistics.table import Cell, Row, Table

_STYLES = {"better": "bold green", "worse": "bold red", "diverged": "red"}
_TITLE_WIDTH = 22
_LABEL_WIDTH = 18


def empty_table(title: str | None = None, caption: str | None = None) -> RichTable:
    """An empty table for the terminal as all commands show them: a line under the head, and no frame."""
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    # Text, never markup, here and in all cells: a spec or a name may hold brackets.
    table.title, table.title_justify = None if title is None else Text(title), "left"
    table.caption, table.caption_justify = None if caption is None else Text(caption), "left"
    return table


def row_table(row: Row) -> RichTable:
    """One line per method: metric, paired difference to the baseline, loss, calibration, cost, memory.

    Numbers are never broken; in 80 columns a long method spec takes several lines instead.
    """
    table = empty_table(caption=_caption(row))
    table.add_column("method", overflow="fold")
    for title in (row.metric, "vs baseline", row.loss_name, "ECE", "cost", "GiB"):
        table.add_column(Text(title), justify="right", overflow="fold")
    for cell in row.begun:
        table.add_row(
            Text(cell.method),
            Text(formatting.mean_margin(cell.metric)),
            Text("baseline") if cell.is_baseline else _difference(cell),
            Text(format_number(cell.loss.mean if cell.loss else None)),
            Text(format_number(cell.ece.mean if cell.ece else None, significant=2)),
            Text(formatting.ratio(cell.cost)),
            Text(formatting.gibibytes(cell.peak_memory_mib)),
        )
    for column in table.columns[1:]:
        column.min_width = max(len(line) for cell in column.cells for line in str(cell).splitlines())
    return table


def _difference(cell: Cell) -> Text:
    """The difference with its verdict, and below it the interval."""
    # The page's word, but for "within noise": the column is to stay narrow.
    word = WORDS["unknown"] if cell.judgement == "unknown" else cell.judgement
    styled = Text(word, _STYLES.get(cell.judgement, ""))
    if cell.difference is None:
        return styled
    mean, interval = formatting.signed_interval(cell.difference.estimate)
    return Text("\n").join([Text(f"{mean} ").append_text(styled), *([Text(interval)] if interval else [])])


def _caption(row: Row) -> str:
    counts = sorted({len(cell.seeds) for cell in row.begun})
    seeds = "1 seed" if counts == [1] else f"{'-'.join(str(n) for n in {counts[0]: 0, counts[-1]: 0})} seeds"
    return f"{seeds}; ± and [ ]: 95 % interval; cost: time per step over {row.baseline}; GiB: peak memory"


def after_table(row: Row, changed: Sequence[AfterRow]) -> RichTable:
    """One line per change of the weights and method: each metric, and its paired difference to the baseline."""
    table = empty_table(
        caption="after training; vs: paired difference and 95 % interval, not corrected for their number"
    )
    table.add_column("weights")
    table.add_column("method", overflow="fold")
    for name in changed[0].cells:
        table.add_column(Text(row.loss_name if name == "loss" else name), justify="right")
        table.add_column(Text(f"vs {row.baseline}"), justify="right")
    for change, group in groupby(changed, key=lambda line: line.change):
        table.add_section()
        for number, line in enumerate(group):
            cells = [t for cell in line.cells.values() for t in _after_cell(cell, line.method == row.baseline)]
            table.add_row(Text("" if number else change), Text(line.method), *map(Text, cells))
    return table


def _after_cell(cell: AfterCell, baseline: bool) -> tuple[str, str]:
    """The mean, and the difference with its interval below."""
    mean = format_number(cell.estimate.mean if cell.estimate else None)
    if cell.difference is None:
        return mean, "baseline" if baseline else MISSING
    return mean, "\n".join(filter(None, formatting.signed_interval(cell.difference.estimate)))


def main_text(cell: Cell) -> str:
    """The main metric with mark and margin: ``▲ 0.912 ± 0.014``; a word where there is none."""
    if cell.verdict in ("absent", "waiting"):
        return WORDS[cell.verdict]
    parts = [MARKS.get(cell.verdict), formatting.mean_margin(cell.metric)]
    if cell.verdict == "unfinished":
        parts.append(f"({len(cell.values)} of {len(cell.planned)} runs)")
    return " ".join(filter(None, parts))


def others_text(cell: Cell) -> str:
    """The further metrics' means: ``0.85, 0.91``; empty without any."""
    return ", ".join(format_number(e.mean) for e in cell.others.values() if e)


def rank_text(table: Table, method: str) -> str:
    """The mean rank: ``2.4``."""
    rank = table.ranking.mean.get(method)
    return MISSING if rank is None else f"{rank:.1f}"


def of_tasks(table: Table) -> str:
    """Which tasks ranks and averages are over: ``of 7 tasks``, ``of 5 whole tasks``."""
    whole = len(table.whole_rows)
    return f"of {whole} tasks" if whole == len(table.rows) else f"of the {whole} whole tasks"


def _footers(table: Table) -> list[tuple[str, list[str]]]:
    """The last rows: title, and a text for every method."""
    costs = ("cost", [formatting.ratio(c.cost) for c in table.columns])
    if len(table.rows) == 1:
        return [costs]
    averages = [
        " ".join(filter(None, [MARKS.get(c.verdict), formatting.mean_margin(c.average)])) for c in table.columns
    ]
    ranks = [rank_text(table, method) for method in table.methods]
    return [(f"average {of_tasks(table)}", averages), (f"mean rank {of_tasks(table)}", ranks), costs]


def _legend(table: Table) -> str:
    """What the marks and the last rows mean."""
    return (
        f"▲ better, ▼ worse than {table.baseline}, ✕ diverged, no mark: within noise or not judged; ±: 95 % "
        f"interval over seeds; rank 1 is best; cost: time per step over {table.baseline}'s"
    )


class TerminalTable:
    """Tasks x methods in as many blocks of columns as the terminal's width asks for.

    Numbers are never broken, and the baseline stands in every block: each can be read alone.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._footers = _footers(table)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The blocks, then what the marks mean."""
        for block in self._blocks(options.max_width):
            yield self._grid(block)
            yield Text()
        yield Text(_legend(self.table), "dim")

    def _blocks(self, width: int) -> list[list[int]]:
        """Which columns stand together; the first is the baseline's."""
        room = width - _TITLE_WIDTH - 1 - self._width(0)
        blocks, left = [[0]], room
        for i in range(1, len(self.table.methods)):
            if self._width(i) > left and len(blocks[-1]) > 1:
                blocks.append([0])
                left = room
            blocks[-1].append(i)
            left -= self._width(i)
        return blocks

    def _width(self, i: int) -> int:
        """Of one column with the space after it."""
        lines = [line.cell_len for text in self._texts(i) for line in text.split("\n")]
        return max([min(len(self.table.methods[i]), _LABEL_WIDTH), *lines]) + 1

    def _texts(self, i: int) -> list[Text]:
        cells = [_cell(row.cells[i]) for row in self.table.rows]
        return [*cells, *(_marked(texts[i]) for _, texts in self._footers)]

    def _grid(self, block: Sequence[int]) -> RichTable:
        table = empty_table()
        table.add_column("task", overflow="fold", max_width=_TITLE_WIDTH)
        for i in block:
            table.add_column(Text(self.table.methods[i]), justify="right", overflow="fold", width=self._width(i) - 1)
        rows = self.table.rows
        titles = [Text.assemble(row.name, "\n", (", ".join(row.metrics), "dim")) for row in rows]
        titles += [Text(title, "italic") for title, _ in self._footers]
        for number, line in enumerate(zip(titles, *map(self._texts, block), strict=True)):
            table.add_row(*line, end_section=number == len(rows) - 1)
        return table


def _cell(cell: Cell) -> Text:
    """The main metric, and below it the others."""
    others, text = others_text(cell), _marked(main_text(cell))
    return Text.assemble(text, "\n", (others, "dim")) if others else text


def _marked(text: str) -> Text:
    """Colour for the mark alone: a whole coloured number would shout."""
    styled = Text(text)
    for verdict, mark in MARKS.items():
        styled.highlight_words([mark], _STYLES[verdict])
    return styled


def markdown_table(table: Table) -> str:
    """Tasks x methods with the numbers of the page, and below it what the marks mean."""
    rows = [
        [
            f"{row.name} ({', '.join(row.metrics)})",
            *("; ".join(filter(None, [main_text(c), others_text(c)])) for c in row.cells),
        ]
        for row in table.rows
    ]
    lines = [["task", *table.methods], *rows, *([title, *texts] for title, texts in _footers(table))]
    head, *body = (f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    rule = f"| {' | '.join(['---', *['--:'] * len(table.methods)])} |"
    return "\n".join([head, rule, *body, "", f"{_legend(table)}.", ""])


def _escaped(text: str) -> str:
    """Text that no reader of Markdown takes for markup, on one line."""
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
