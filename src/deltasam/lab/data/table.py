"""A table: the columns of one file; and checks shared by all formats: UTF-8 text, column names."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam.errors import UserError

_BEGINNING = 100  # bytes that show the encoding


@dataclass(frozen=True)
class Table:
    """The columns of one file, and the location of each row in it.

    Attributes:
        name: Name of the file in messages.
        columns: The values of each column, by column name.
        places: The number of each row as an editor shows it: the line it starts on, or its count from 1.
        unit: Unit of ``places``: ``line`` or ``row``.
        class_names: Names of the class indices of a column, if the file defines them (Parquet files written by Hugging
            Face datasets), by column name.
    """

    name: str
    columns: dict[str, list[Any]]
    places: Sequence[int]
    unit: str = "line"
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.places):
            raise UserError(f"{self.name}: no rows; give a file with a header and data")

    def at(self, row: int) -> str:
        """Location of the 0-based data row ``row``, for a message: ``my.csv, line 7``."""
        return f"{self.name}, {self.unit} {self.places[row]}"


def decode(name: str, content: bytes) -> str:
    """Decode a file's content, without byte order mark.

    Raises:
        UserError: The content is not UTF-8; the message says where.
    """
    beginning = content[:_BEGINNING]
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _utf16(name, "UTF-16")
    # Without a byte order mark: every second byte of Latin text is NUL, the first or the second of each character.
    if beginning.count(0) * 3 > len(beginning):
        raise _utf16(name, "UTF-16LE" if beginning[1] == 0 else "UTF-16BE")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}, line {line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8; convert the "
            f"file, for example: iconv -f WINDOWS-1252 -t UTF-8 {Path(name).name}"
        ) from error


def check_header(name: str, header: Sequence[str]) -> None:
    """Check that no two columns have the same name; several may be unnamed.

    Raises:
        UserError: Two columns have the same name.
    """
    twice = [column for column in dict.fromkeys(header) if column and list(header).count(column) > 1]
    if twice:
        raise UserError(f"{name}: more than one column is called {twice[0]!r}; rename one")


def _utf16(name: str, codec: str) -> UserError:
    return UserError(f"{name}: is UTF-16, not UTF-8; convert it: iconv -f {codec} -t UTF-8 {Path(name).name}")
