"""The table of experiments for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from deltasam.lab.compare.overview import cell_text
from deltasam.lab.compare.overview.overview import Cell, Overview

_STYLES = {"▲": "bold green", "▼": "bold red", "✕": "red"}
_TITLE_WIDTH = 22
_LABEL_WIDTH = 18


class TerminalTable:
    """Tasks x methods in as many blocks of columns as the terminal's width asks for.

    Numbers are never broken, and the baseline stands in every block: each can be read alone.
    """

    def __init__(self, overview: Overview) -> None:
        self.overview = overview

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The blocks, then what the marks mean."""
        for block in self._blocks(options.max_width):
            yield self._table(block)
            yield Text()
        yield Text(cell_text.legend(self.overview), "dim")

    def _blocks(self, width: int) -> list[list[int]]:
        """Which columns stand together; the first is the baseline's."""
        taken = _TITLE_WIDTH + 1 + self._width(0)
        blocks: list[list[int]] = [[0]]
        room = width - taken
        for i in range(1, len(self.overview.columns)):
            if self._width(i) > room and len(blocks[-1]) > 1:
                blocks.append([0])
                room = width - taken
            blocks[-1].append(i)
            room -= self._width(i)
        return blocks

    def _width(self, i: int) -> int:
        """Of one column with the space after it."""
        lines = [line.cell_len for text in self._texts(i) for line in text.split("\n")]
        return max([min(len(self.overview.methods[i]), _LABEL_WIDTH), *lines]) + 1

    def _texts(self, i: int) -> list[Text]:
        cells = [_cell(row.cells[i]) for row in self.overview.rows]
        return [*cells, *(_marked(texts[i]) for _, texts in cell_text.footers(self.overview))]

    def _table(self, block: Sequence[int]) -> Table:
        overview = self.overview
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("task", overflow="fold", max_width=_TITLE_WIDTH)
        for i in block:
            # Cells are Text, never markup: a name may hold brackets.
            table.add_column(Text(overview.methods[i]), justify="right", overflow="fold", width=self._width(i) - 1)
        titles = [_title(row.name, row.metrics) for row in overview.rows]
        titles += [Text(title, "italic") for title, _ in cell_text.footers(overview)]
        columns = [self._texts(i) for i in block]
        for r, title in enumerate(titles):
            table.add_row(title, *(texts[r] for texts in columns), end_section=r == len(overview.rows) - 1)
        return table


def _title(name: str, metrics: tuple[str, ...]) -> Text:
    return Text.assemble(name, "\n", (", ".join(metrics), "dim"))


def _cell(cell: Cell) -> Text:
    """The main metric, and below it the others."""
    others = cell_text.others_text(cell)
    text = _marked(cell_text.main_text(cell))
    return Text.assemble(text, "\n", (others, "dim")) if others else text


def _marked(text: str) -> Text:
    """Colour for the mark alone: a whole coloured number would shout."""
    styled = Text(text)
    for mark, style in _STYLES.items():
        styled.highlight_words([mark], style)
    return styled
