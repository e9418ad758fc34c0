"""Read a table file exactly as it is written: no guessed types, no "NA" turned into a missing value.

The readers that infer types change text on the way (``NA`` becomes missing, ``01`` a number, an ISO date a time
stamp), so the parsers of the standard library and of Parquet are used, and every value stays what it was.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltasam.errors import UserError


@dataclass(frozen=True)
class Table:
    """The columns of one file, and where each row stands in it.

    Attributes:
        name: What to call the file in messages.
        columns: The values of each column, by column name.
        places: The number of each row as an editor shows it: the line it starts on, or its count from 1.
        unit: What ``places`` counts: ``line`` or ``row``.
    """

    name: str
    columns: dict[str, list[Any]]
    places: Sequence[int]
    unit: str = "line"

    def at(self, row: int) -> str:
        """Where the 0-based data row ``row`` is found, for a message: ``my.csv, line 7``."""
        return f"{self.name}, {self.unit} {self.places[row]}"


def table_suffix(path: Path) -> str | None:
    """Compute the table format a file name promises: ``.csv`` for ``a.CSV.gz``, None when it is no table."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _PARSERS else None


def supported_suffixes() -> str:
    """List the table formats for a message."""
    return " ".join(_PARSERS) + " (each but .parquet also with .gz)"


def read_table(path: Path) -> Table:
    """Read a table file whose format its suffix names.

    Raises:
        UserError: The file is missing, unreadable, broken, of another format, or has no rows.
    """
    suffix = table_suffix(path)
    content = read_bytes(path)
    if suffix is None:
        raise UserError(f"{path}: unknown file type {path.suffix!r}; supported are {supported_suffixes()}")
    return _PARSERS[suffix](str(path), content)


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed when its name ends in ``.gz``."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path given as --data or --eval-data") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if path.suffix.lower() != ".gz":
        return content
    if table_suffix(path) == ".parquet":
        raise UserError(f"{path}: Parquet is compressed inside already; unpack it first: gunzip {path.name}")
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file ({error}); compress or download it again") from error


def decode(name: str, content: bytes) -> str:
    """The text in a file's content, without byte order mark.

    Raises:
        UserError: It is not UTF-8; says where.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            file = Path(name).name
            raise UserError(f"{name}: is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {file}") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}, line {line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8; convert the "
            f"file, for example: iconv -f WINDOWS-1252 -t UTF-8 {Path(name).name}"
        ) from error


def parse_delimited(
    name: str, content: bytes, delimiter: str, *, quoted: bool = True, header: Sequence[str] | None = None
) -> Table:
    """Parse CSV or TSV text; every value is a string, kept to the last blank and line break.

    Args:
        name: What to call the file in messages.
        content: UTF-8, with or without a byte order mark.
        delimiter: What stands between two fields.
        quoted: Whether a quotation mark at the start of a field opens a quoted one. GLUE files do not quote.
        header: The column names, when the file has no header line.

    Raises:
        UserError: It cannot be parsed, or seems to have another delimiter.
    """
    text = decode(name, content)
    if header is None:
        _check_delimiter(name, text.partition("\n")[0], delimiter)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(
        lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    records, places, start = [], [], 1
    try:
        for record in reader:
            if record:
                records.append(record)
                places.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{name}, line {start}: {error}; quote a field as a whole and double the quotation marks inside it"
        ) from error
    if header is None:
        header, records, places = (records or [[]])[0], records[1:], places[1:]
    _check_header(name, header)
    for record, place in zip(records, places, strict=True):
        if len(record) != len(header):
            raise UserError(
                f"{name}, line {place}: {len(record)} fields where the header has {len(header)}; "
                "quote a field that holds the delimiter"
            )
    columns = {column: list(values) for column, values in zip(header, zip(*records, strict=True), strict=False)}
    return _filled(Table(name, columns, places))


def _check_delimiter(name: str, header: str, delimiter: str) -> None:
    """Stop at a header that is one column, but would be several with another delimiter.

    Later the file would be broken at the first text that holds the delimiter, far from the cause.
    """
    if delimiter in header:
        return
    if "\t" in header:
        raise UserError(f"{name}: seems to be separated by tabs, not by {delimiter!r}; name it .tsv instead of .csv")
    if ";" in header:
        rewrite = "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter=';'))"
        raise UserError(
            f"{name}: seems to be separated by ';', not by {delimiter!r}; write it with commas, for example: "
            f'python -c "{rewrite}" < {Path(name).name} > commas.csv'
        )


def _parse_parquet(name: str, content: bytes) -> Table:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].strip(". ")
        raise UserError(f"{name}: broken Parquet file ({reason}); write or download it again") from error
    _check_header(name, table.column_names)
    columns = {column: table[column].to_pylist() for column in table.column_names}
    return _filled(Table(name, columns, range(1, table.num_rows + 1), unit="row"))


def _parse_json_lines(name: str, content: bytes) -> Table:
    # Not splitlines(): that also breaks at characters JSON allows inside a string, such as U+2028.
    lines = enumerate(decode(name, content).split("\n"), start=1)
    records = {place: _load_json(name, line, place) for place, line in lines if line.strip()}
    return _from_records(name, list(records.values()), list(records), "line")


def _parse_json(name: str, content: bytes) -> Table:
    text = decode(name, content)
    if not text.lstrip().startswith("["):
        return _parse_json_lines(name, content)
    records = _load_json(name, text, first_line=1)
    return _from_records(name, records, range(1, len(records) + 1), "row")


def _load_json(name: str, text: str, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"{name}, line {first_line + error.lineno - 1}"
        raise UserError(f"{place}: not JSON ({error.msg} at character {error.colno}); correct it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}, line {first_line}: {error}; correct it") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"an object names one field twice, among {', '.join(key for key, _ in pairs)}")
    return record


def _from_records(name: str, records: list[Any], places: Sequence[int], unit: str) -> Table:
    for record, place in zip(records, places, strict=True):
        if not isinstance(record, dict):
            raise UserError(f"{name}, {unit} {place}: not a JSON object; write every row as {{column: value, ...}}")
    names = dict.fromkeys(key for record in records for key in record)
    columns = {column: [record.get(column) for record in records] for column in names}
    return _filled(Table(name, columns, places, unit))


def _check_header(name: str, header: Sequence[str]) -> None:
    twice = [column for column in dict.fromkeys(header) if column and list(header).count(column) > 1]
    if twice:
        raise UserError(f"{name}: more than one column is called {twice[0]!r}; rename one")


def _filled(table: Table) -> Table:
    if not len(table.places):
        raise UserError(f"{table.name}: no rows; give a file with a header and data")
    return table


_PARSERS: dict[str, Callable[[str, bytes], Table]] = {
    ".csv": lambda name, content: parse_delimited(name, content, ","),
    ".tsv": lambda name, content: parse_delimited(name, content, "\t"),
    ".jsonl": _parse_json_lines,
    ".json": _parse_json,
    ".parquet": _parse_parquet,
}
