"""Parse JSON: a list of objects, or a sequence of objects, one per line or over several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.data.table import Table, decode

# Not splitlines(): that also breaks at characters JSON allows inside a string, such as U+2028.
_LINE_END = re.compile(r"\r\n?|\n")
_LIST_OF_ROWS = re.compile(r"\s*\[\s*[{\]]")
_BLANKS = re.compile(r"[ \t\r\n]*")


def parse_json(name: str, content: bytes) -> Table:
    """Parse the rows of a JSON file in any of these forms. Values keep their types; a missing one is None.

    Raises:
        UserError: The content is not JSON, or its rows are not objects.
    """
    text = decode(name, content)
    if _LIST_OF_ROWS.match(text):
        records = _parsed(name, 1, partial(_DECODER.decode, text))
        return _from_records(name, records, range(1, len(records) + 1), "row")
    lines = [(place, line) for place, line in enumerate(_LINE_END.split(text), start=1) if line.strip()]
    try:
        found = [(place, _parsed(name, place, partial(_DECODER.decode, line))) for place, line in lines]
    except UserError as error:
        found = _over_lines(name, text, error)
    return _from_records(name, [record for _, record in found], [place for place, _ in found], "line")


def _over_lines(name: str, text: str, error_by_line: UserError) -> list[tuple[int, Any]]:
    """Objects over several lines each; if that fails too, raise the error of the form that the file has."""
    try:
        return list(_one_after_the_other(name, text))
    except UserError as error:
        over_lines = re.match(r"\s*(\[|\{[ \t]*[\r\n])", text)
        raise (error if over_lines else error_by_line) from error


def _one_after_the_other(name: str, text: str) -> Iterator[tuple[int, Any]]:
    """Each value of a text, and the line it begins on."""
    line, counted, start = 1, 0, _after_blanks(text, 0)
    while start < len(text):
        line, counted = line + len(_LINE_END.findall(text, counted, start)), start
        value, end = _parsed(name, 1, partial(_DECODER.raw_decode, text, start))
        yield line, value
        start = _after_blanks(text, end)


def _after_blanks(text: str, start: int) -> int:
    found = _BLANKS.match(text, start)
    return found.end() if found else start


def _parsed(name: str, first_line: int, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
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


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _from_records(name: str, records: list[Any], places: Sequence[int], unit: str) -> Table:
    for record, place in zip(records, places, strict=True):
        if not isinstance(record, dict):
            raise UserError(f"{name}, {unit} {place}: not a JSON object; write every row as {{column: value, ...}}")
    if len(records) == 1 and _is_whole_table(records[0]):
        raise UserError(
            f"{name}: one JSON object that holds {', '.join(records[0])}, not rows; write a list of rows, "
            "[{column: value, ...}, ...]: with pandas to_json(path, orient='records')"
        )
    names = dict.fromkeys(key for record in records for key in record)
    columns = {column: [record.get(column) for record in records] for column in names}
    return Table(name, columns, places, unit)


def _is_whole_table(record: dict[str, Any]) -> bool:
    """Whether an object contains the rows or columns of a table: ``{"data": [...]}``, ``{"text": [...], ...}``."""
    nested = [isinstance(value, list | dict) for value in record.values()]
    return bool(nested) and (all(nested) or isinstance(record.get("data"), list))
