"""Read a table file exactly as it is written: no type inference, no "NA" turned into a missing value.

Readers that infer types change text (``NA`` becomes missing, ``01`` a number, an ISO date a timestamp), so the parsers
of the standard library and of Parquet are used, and every value stays unchanged.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deltasam.errors import UserError
from deltasam.lab.data.delimited import parse_delimited
from deltasam.lab.data.json_rows import parse_json
from deltasam.lab.data.table import Table, check_header

_FEATURES = b"huggingface"  # the metadata in which Hugging Face datasets keeps a table's features


def table_suffix(path: Path) -> str | None:
    """The table format that a file name implies: ``.csv`` for ``a.CSV.gz``, None if it is not a table."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _PARSERS else None


def supported_suffixes() -> str:
    """List the table formats for a message."""
    return " ".join(_PARSERS) + " (each but .parquet also with .gz)"


def read_table(path: Path) -> Table:
    """Read a table file, whose suffix determines its format.

    Raises:
        UserError: The file is missing, unreadable, broken, of another format, or has no rows.
    """
    suffix = table_suffix(path)
    content = read_bytes(path)
    if suffix is None:
        raise UserError(f"{path}: unknown file type {path.suffix!r}; supported are {supported_suffixes()}")
    return _PARSERS[suffix](str(path), content)


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed when its name ends in ``.gz``.

    Raises:
        UserError: It is missing, unreadable, broken, or the suffix names a table and the content is something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path given as --data or --eval-data") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if path.suffix.lower() == ".gz":
        content = _unpacked(path, content)
    suffix = table_suffix(path)
    if suffix is not None and (kind := _other_kind(content, suffix)):
        raise UserError(f"{path}: not a {suffix} file, but {kind}")
    return content


def _unpacked(path: Path, content: bytes) -> bytes:
    if table_suffix(path) == ".parquet":
        raise UserError(f"{path}: Parquet is compressed inside already; unpack it first: gunzip {path.name}")
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file ({error}); compress or download it again") from error


def _other_kind(content: bytes, suffix: str) -> str | None:
    """The other format that a file's first bytes show, and what to do about it; None if they show none."""
    save = "in the spreadsheet program save it as CSV UTF-8"
    if content.startswith(b"PK\x03\x04"):
        inside = _names_in_archive(content)
        if any(name.startswith("xl/") for name in inside):
            return f"an Excel workbook (.xlsx); {save}"
        if {"mimetype", "content.xml"} <= set(inside):
            return f"an OpenDocument spreadsheet (.ods); {save}"
        return "a ZIP archive; unpack it"
    kinds = {
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"an old Excel workbook (.xls); {save}",
        b"PAR1": "a Parquet file; name it .parquet",
        b"\x1f\x8b": f"compressed by gzip; name it {suffix}.gz",
        b"BZh": "compressed by bzip2; unpack it: bunzip2",
        b"\xfd7zXZ\x00": "compressed by xz; unpack it: unxz",
        b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it: unzstd",
        b"%PDF-": "a PDF document; save the table as CSV",
        b"SQLite format 3\x00": "an SQLite database; export the table as CSV",
        b"version https://git-lfs": "a pointer of Git LFS, which stands for the file; fetch it: git lfs pull",
    }
    for beginning, kind in kinds.items():
        if content.startswith(beginning) and not (suffix == ".parquet" and beginning == b"PAR1"):
            return kind
    visible = content[:1000].removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<(!doctype|html|\?xml|table)\b", visible, re.IGNORECASE):
        return f"HTML or XML, as of a page that was saved in place of a file; download it again, or {save}"
    if suffix in (".csv", ".tsv") and re.match(rb'\{\s*"|\[\s*\{\s*"', visible):
        return "JSON; name it .jsonl"
    return None


def _names_in_archive(content: bytes) -> list[str]:
    try:
        return zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return []


def _parse_parquet(name: str, content: bytes) -> Table:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].strip(". ")
        raise UserError(f"{name}: broken Parquet file ({reason}); write or download it again") from error
    check_header(name, table.column_names)
    columns = {column: table[column].to_pylist() for column in table.column_names}
    return Table(name, columns, range(1, table.num_rows + 1), "row", _class_names(name, table.schema))


def _class_names(name: str, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The class names of each column, as Hugging Face datasets writes them into the file."""
    stored = (schema.metadata or {}).get(_FEATURES)
    if stored is None:
        return {}
    try:
        features = json.loads(stored)["info"].get("features") or {}
        classes = {column: f["names"] for column, f in features.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{name}: its {_FEATURES.decode()!r} metadata, which says what class indices mean, cannot be read "
            f"({error!r:.80}); write the file again"
        ) from error
    return {column: tuple(map(str, names)) for column, names in classes.items() if column in schema.names}


_PARSERS: dict[str, Callable[[str, bytes], Table]] = {
    ".csv": lambda name, content: parse_delimited(name, content, ","),
    ".tsv": lambda name, content: parse_delimited(name, content, "\t"),
    ".jsonl": parse_json,
    ".json": parse_json,
    ".parquet": _parse_parquet,
}
