"""How tables look in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text


def empty_table(title: str | None = None, caption: str | None = None) -> Table:
    """An empty table without frames, close to its neighbours; title and caption are no markup."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.title, made.title_justify = None if title is None else Text(title), "left"
    made.caption, made.caption_justify = None if caption is None else Text(caption), "left"
    return made
