"""Parse CSV and TSV text: every value is a string, kept to the last blank and line break."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.data.table import Table, check_header, decode

_SEP_LINE = re.compile(r'(?:sep=([^\w\s"]|\t)|"sep=([^\w\s"]|\t)")(?:\r\n?|\n)', re.IGNORECASE)
_BLANK_BEFORE_QUOTE = re.compile(r' +".*"', re.DOTALL)
_LONGEST = 2**31 - 1  # characters in a field: the maximum of csv on every platform, since a C long may have 32 bits
_limit = threading.Lock()  # the limit is global to the process, and another thread may parse too


def parse_delimited(
    name: str, content: bytes, delimiter: str, *, quoted: bool = True, header: Sequence[str] | None = None
) -> Table:
    """Parse CSV or TSV text.

    A first line ``sep=;``, which tells spreadsheets the delimiter, is respected.

    Args:
        name: Name of the file in messages.
        content: UTF-8 text, with or without a byte order mark.
        delimiter: The delimiter between fields.
        quoted: Whether a quotation mark at the start of a field opens a quoted field. GLUE files do not quote.
        header: The column names, if the file has no header line.

    Raises:
        UserError: The text cannot be parsed, or seems to have another delimiter.
    """
    text = decode(name, content)
    first_line = 1
    if header is None:
        if quoted and (told := _SEP_LINE.match(text)):
            delimiter, text, first_line = told[1] or told[2], text[told.end() :], 2
        _check_delimiter(name, re.split("[\r\n]", text, maxsplit=1)[0], delimiter, told=first_line == 2)
    source = _Source(name, text, delimiter, quoted, first_line)
    records, places = source.records()
    _check_blanks(source, records, places)
    if header is None:
        header, records, places = (records or [[]])[0], records[1:], places[1:]
    check_header(name, header)
    _check_lengths(source, header, records, places)
    columns = {column: list(values) for column, values in zip(header, zip(*records, strict=True), strict=False)}
    return Table(name, columns, places)


def without_blanks(name: str, delimiter: str | None = None) -> str:
    """A command that rewrites a file without the blanks after its delimiters, for a message; empty for other formats.

    Args:
        name: The file.
        delimiter: The delimiter between fields; None: according to the suffix.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in (".csv", ".tsv"):
        return ""
    delimiter = delimiter or {".csv": ",", ".tsv": "\t"}[suffix]
    option = "" if delimiter == "," else f", delimiter={delimiter!r}"
    reader = f"csv.reader(sys.stdin, skipinitialspace=True{option})"
    rewrite = f"import csv, sys; csv.writer(sys.stdout{option}).writerows({reader})"
    return f', for example: python -c "{rewrite}" < {Path(name).name} > without_blanks{suffix}'


@dataclass(frozen=True)
class _Source:
    """A text to be parsed, and its format.

    Attributes:
        name: Name of the file in messages.
        text: The whole text.
        delimiter: As in `parse_delimited`.
        quoted: As in `parse_delimited`.
        first_line: The number of the first line of ``text`` in the file.
    """

    name: str
    text: str
    delimiter: str
    quoted: bool
    first_line: int

    def records(self) -> tuple[list[list[str]], list[int]]:
        """The fields of every record, and the line each begins on; empty lines are skipped."""
        records, places, start = [], [], self.first_line
        try:
            with _any_length():
                reader = self.reader()
                for record in reader:
                    if record:
                        records.append(record)
                        places.append(start)
                    start = self.first_line + reader.line_num
        except csv.Error as error:
            raise UserError(
                f"{self.name}, line {start}: {error}; quote a field as a whole and double the quotation marks inside it"
            ) from error
        return records, places

    def records_without_blanks(self) -> list[list[str]]:
        """The records parsed without the blanks after delimiters; empty if that fails."""
        try:
            with _any_length():
                return [record for record in self.reader(skip_blanks=True) if record]
        except csv.Error:
            return []

    def reader(self, *, skip_blanks: bool = False) -> Any:  # csv names its type since Python 3.13
        return csv.reader(
            io.StringIO(self.text, newline=""),
            delimiter=self.delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            skipinitialspace=skip_blanks,
        )


@contextmanager
def _any_length() -> Iterator[None]:
    """Lift the limit of 131,072 characters in a field: a document may be longer."""
    with _limit:
        before = csv.field_size_limit(_LONGEST)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _check_delimiter(name: str, header: str, delimiter: str, *, told: bool) -> None:
    """Raise if the header is one column, but would be several with another delimiter.

    Otherwise parsing would fail at the first text that contains the delimiter, far from the cause.
    """
    if delimiter in header:
        return
    if told:
        raise UserError(
            f"{name}: its first line, sep={delimiter}, says that {delimiter!r} separates the fields, and the header "
            "has none; correct or delete that line"
        )
    if "\t" in header:
        raise UserError(f"{name}: seems to be separated by tabs, not by {delimiter!r}; name it .tsv instead of .csv")
    if ";" in header:
        rewrite = "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter=';'))"
        raise UserError(
            f"{name}: seems to be separated by ';', not by {delimiter!r}; write it with commas, for example: "
            f'python -c "{rewrite}" < {Path(name).name} > commas.csv'
        )


def _check_blanks(source: _Source, records: list[list[str]], places: Sequence[int]) -> None:
    """Raise at a blank between a delimiter and a quotation mark: the mark does not quote and becomes part of the text.

    The same value can be written correctly, with the blank inside the quotation marks. Parsing once more without blanks
    distinguishes the two.
    """
    if not source.quoted or not any(_BLANK_BEFORE_QUOTE.fullmatch(field) for record in records for field in record):
        return
    for record, other, place in zip(records, source.records_without_blanks(), places, strict=False):
        if [field.lstrip(" ") for field in record] != [field.lstrip(" ") for field in other]:
            raise UserError(f"{source.name}, line {place}: {_blank_remedy(source)}")


def _check_lengths(source: _Source, header: Sequence[str], records: list[list[str]], places: Sequence[int]) -> None:
    for i, (record, place) in enumerate(zip(records, places, strict=True)):
        if len(record) != len(header):
            # A quoted field of several lines breaks off at the first and makes a record of each.
            suspects = [*(records[i - 1] if i else []), *record]
            blank = source.quoted and any(re.match(' +"', field) for field in suspects)
            remedy = _blank_remedy(source) if blank else "quote a field that holds the delimiter"
            raise UserError(
                f"{source.name}, line {place}: {len(record)} fields where the header has {len(header)}; {remedy}"
            )


def _blank_remedy(source: _Source) -> str:
    return (
        f"a blank between {source.delimiter!r} and a quotation mark, which therefore quotes nothing; remove the "
        f"blanks after the delimiters{without_blanks(source.name, source.delimiter)}"
    )
