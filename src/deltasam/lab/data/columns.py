"""Find the text and label columns of a table, and read the text."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltasam.errors import UserError
from deltasam.lab.data.delimited import without_blanks
from deltasam.lab.data.table import Table

TEXT_COLUMNS = ("text", "sentence")  # taken without --text, when a table has exactly one of them
LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are used.

    Attributes:
        text: The text, or the first of two.
        text_pair: The second text; None when a row holds one.
        label: The label.
    """

    text: str
    text_pair: str | None
    label: str


def choose_columns(
    where: str, present: Sequence[str], text: str | None, text_pair: str | None, label: str | None
) -> Columns:
    """Determine which columns to use, with defaults for those that are not named.

    Args:
        where: Name of the table in messages.
        present: The table's columns.
        text: As ``--text``.
        text_pair: As ``--text-pair``.
        label: As ``--label``.

    Raises:
        UserError: A column does not exist, is used twice, or the text column is ambiguous.
    """
    if text is None:
        candidates = [column for column in TEXT_COLUMNS if column in present]
        if not candidates:
            _check_blanks(where, present, "--text", TEXT_COLUMNS)
        if len(candidates) != 1:
            raise UserError(
                f"{where}: which column is the text? Name it with --text (and --text-pair for two texts); "
                f"columns: {_listed(present)}"
            )
        text = candidates[0]
    label = LABEL_COLUMN if label is None else label
    asked = {"--text": text, "--text-pair": text_pair, "--label": label}
    check_columns(where, present, {option: column for option, column in asked.items() if column is not None})
    return Columns(text, text_pair, label)


def check_columns(where: str, present: Sequence[str], used: Mapping[str, str]) -> None:
    """Check that columns exist and differ.

    Args:
        where: Name of the table in messages.
        present: The table's columns.
        used: The column that each option names.

    Raises:
        UserError: A column does not exist, or is used twice.
    """
    for option, column in used.items():
        _check_present(where, present, option, column)
    if len(set(used.values())) < len(used):
        pairs = ", ".join(f"{option} {column}" for option, column in used.items())
        raise UserError(f"{where}: one column is used twice ({pairs}); name different columns")


def read_texts(table: Table, column: str, options: str = "--text or --text-pair") -> list[str]:
    """Read the text of each row from ``column``, unchanged.

    Args:
        table: The table.
        column: Name of the column.
        options: The options that name another column, for messages.

    Raises:
        UserError: A row holds no text, something that is not text, or text that UTF-8 cannot encode.
    """
    values = table.columns[column]
    blank = [row for row, v in enumerate(values) if is_missing(v) or (isinstance(v, str) and not v.strip())]
    if blank:
        raise UserError(
            f"{table.at(blank[0])}: no text in column {column!r} ({_rows(len(blank))} so); fill it in or delete the row"
        )
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(
                f"{table.at(row)}: column {column!r} holds {value!r:.40}, not text; "
                f"name another column with {options}, or write it as a string"
            )
        if not _encodable(value):
            raise UserError(f"{table.at(row)}: column {column!r} holds half of a surrogate pair; delete that character")
    return values


def is_missing(value: object) -> bool:
    """Whether a value is missing: null or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def _encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _check_present(where: str, present: Sequence[str], option: str, column: str) -> None:
    if column in present:
        return
    _check_blanks(where, present, option, (column,))
    folded = {name.lower(): name for name in present}
    near = difflib.get_close_matches(column.lower(), folded, n=1)
    hint = f"did you mean {option} {folded[near[0]]!r}?" if near else f"name it with {option}."
    raise UserError(f"{where}: no column {column!r}; {hint} Columns: {_listed(present)}")


def _check_blanks(where: str, present: Sequence[str], option: str, wanted: Sequence[str]) -> None:
    """Raise if a name is missing only because of blanks around it, as after the comma of ``text, label``."""
    padded = next((name for name in present if name.strip() in wanted), None)
    if padded is not None:
        raise UserError(
            f"{where}: the column is called {padded!r}, and the blanks beside delimiters belong to names and values; "
            f"name it so, {option} {padded!r}, or remove the blanks{without_blanks(where)}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names if name) or "none"


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"
