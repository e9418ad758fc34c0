"""The table of a run's examples as a CSV file that any spreadsheet opens, and that comes back as it was.

A spreadsheet would run a text that begins with one of ``= + - @`` as a formula, and data comes from strangers. Such a
text has an apostrophe in front of it in the file; ``read_examples`` takes it off. Nothing else is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasam.core.files import replacing

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_MARKED = re.compile(r"'+[=+\-@\t\r]")
_HALF_PAIRS = "surrogatepass"  # half of a pair is no valid UTF-8, but comes back as it was
_TRUTHS = ("flipped", "correct")


def to_csv(frame: pd.DataFrame) -> str:
    """A table of examples as the text of a file; numbers have all their digits."""
    import pandas as pd

    names = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    marked = {name: texts(map(_mark, frame[name])) for name in names}
    return frame.reset_index(drop=True).assign(**marked).to_csv(index=False, lineterminator="\r\n")


def write_csv(path: Path, text: str) -> None:
    """Write what ``to_csv`` made, whole or not at all.

    Raises:
        UserError: The folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", _HALF_PAIRS))


def read_examples(path: str | Path) -> pd.DataFrame:
    """A table of examples as it was written, texts character for character.

    ``text`` is text. Labels and predictions are numbers if all of them are, and so is any other column.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no table of examples.
    """
    import pandas as pd

    try:
        cells = pd.read_csv(path, dtype=object, na_filter=False, encoding="utf-8", encoding_errors=_HALF_PAIRS)
    except ValueError as error:  # pandas' own errors are such, and a file that is not UTF-8
        raise ValueError(f"{path} is no table of examples: {error}") from error
    if "visits" not in cells:
        raise ValueError(f"{path} is no table of examples: it has no column 'visits'")
    found = {name: _truths(cells[name]) for name in _TRUTHS if name in cells}
    labels = [name for name in cells.columns if name in ("label", "clean_label") or name.startswith("prediction")]
    for group in (labels, *([name] for name in cells.columns if name not in ("text", *labels, *found))):
        found |= _numbers(cells, group)
    found |= {name: texts(map(_unmark, cells[name])) for name in cells.columns if name not in found}
    return pd.DataFrame({name: found[name] for name in cells.columns})


def texts(values: Iterable[Any]) -> pd.Series[Any]:
    """A column of Python's own texts, which may hold what Arrow's cannot."""
    import pandas as pd

    return pd.Series(list(values), dtype=object)


def _truths(cells: pd.Series[Any]) -> pd.Series[Any]:
    return cells.map({"True": True, "False": False}).astype("boolean")


def _numbers(cells: pd.DataFrame, names: list[str]) -> dict[str, pd.Series[Any]]:
    """Columns as numbers, if every cell is one or empty; else none."""
    import pandas as pd

    try:
        return {name: pd.to_numeric(cells[name]) for name in names}
    except ValueError:
        return {}


def _mark(cell: object) -> Any:
    """A text that a spreadsheet would run, with an apostrophe; a number stays one."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _unmark(cell: str) -> str:
    return cell[1:] if _MARKED.match(cell) else cell
