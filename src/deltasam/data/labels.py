"""Turn a label column into class names, or into scores for regression."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from deltasam.data.columns import is_missing
from deltasam.data.tables import Table
from deltasam.errors import UserError

_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def read_classes(table: Table, column: str) -> list[str]:
    """Take the class name of each row out of ``column``, as it is written.

    A column of whole floats (``0.0``, ``1.0``: what pandas makes of integers beside a gap) counts as integers.

    Raises:
        UserError: A label is missing, not a plain value, or the column holds fractions.
    """
    values = _present(table, column)
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{table.at(row)}: label {column!r} is {value!r:.40}, not a plain value; "
                "write a string, a whole number or true/false, or name another column with --label"
            )
    if not _is_float_column(values):
        return [str(value) for value in values]
    for row, value in enumerate(values):
        if not float(value).is_integer():
            raise UserError(
                f"{table.at(row)}: label {value} in column {column!r} is not a class; for scores give --task regression"
            )
    return [str(int(float(value))) for value in values]


def read_known_classes(table: Table, column: str, names: tuple[str, ...]) -> list[str]:
    """Take class names out of ``column`` that writes each as its name or as its index in ``names``.

    Raises:
        UserError: As `read_classes`, or a label is neither.
    """
    by_index = {str(index): name for index, name in enumerate(names)}
    classes = [by_index.get(label, label) for label in read_classes(table, column)]
    for row, label in enumerate(classes):
        if label not in names:
            choice = ", ".join(f"{index} {name}" for index, name in by_index.items())
            raise UserError(
                f"{table.at(row)}: label {label!r} in column {column!r} is none of {choice}; give a file with labels"
            )
    return classes


def order_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort the distinct class names: by number when all are integers, else as strings."""
    names = sorted(set(labels))
    if all(_INTEGER.fullmatch(name) for name in names):
        names.sort(key=int)
    return tuple(names)


def read_scores(table: Table, column: str) -> list[float]:
    """Take the score of each row out of ``column``.

    Raises:
        UserError: A score is missing, not a number, or not finite.
    """
    values = _present(table, column)
    scores = []
    for row, value in enumerate(values):
        score = _number(value)
        if score is None or not math.isfinite(score):
            raise UserError(
                f"{table.at(row)}: label {value!r:.40} in column {column!r} is not a finite number; "
                "correct it, or give --task classification"
            )
        scores.append(score)
    return scores


def _present(table: Table, column: str) -> list[Any]:
    values = table.columns[column]
    empty = [row for row, v in enumerate(values) if is_missing(v) or (isinstance(v, str) and not v.strip())]
    if empty:
        count = "1 row has" if len(empty) == 1 else f"{len(empty)} rows have"
        raise UserError(
            f"{table.at(empty[0])}: no label in column {column!r} ({count} none); fill it in or delete the row"
        )
    return values


def _is_float_column(values: list[Any]) -> bool:
    if any(_number(value) is None for value in values):
        return False
    return any(isinstance(value, float) or any(mark in str(value) for mark in ".eE") for value in values)


def _number(value: Any) -> float | None:
    """Read a number; None when it is not one. Not float(): that also takes ``1_0`` and ``nan``."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond the range of floats
        return math.inf
