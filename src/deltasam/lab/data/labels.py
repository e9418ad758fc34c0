"""Turn a label column into class names, or into scores for regression.

A class has the name in the file: ``1E1``, ``01`` and ``9007199254740993`` are names. There is one exception: a column
of whole numbers with a decimal point (``0.0``, ``1.0``: what programs write for integers next to a missing value) is
read as integers, unless two labels would become one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.data.columns import is_missing
from deltasam.lab.data.table import Table

_INTEGER = re.compile(r"-?[0-9]+")
_WHOLE = re.compile(r"([-+]?)([0-9]+)(\.0*)?")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_EXACT = 2.0**53  # below it, every whole number is a float of its own


def read_classes(table: Table, column: str) -> list[str]:
    """Read the class name of each training row from ``column``.

    Raises:
        UserError: A label is missing, not a plain value, the column holds fractions, or one number in two spellings.
    """
    if names := table.class_names.get(column):
        return _by_index(table, column, names)
    values = _plain_values(table, column)
    texts = [str(value) for value in values]
    if any(_number(value) is None for value in values):
        return texts
    with_point = any("." in text for text in texts)
    for row, text in enumerate(texts):
        # 1e999, which no float holds, is a name like 1E1; beside numbers with a point it is a score like them.
        if not (
            _WHOLE.fullmatch(text.strip()) or float(text).is_integer() or (math.isinf(float(text)) and not with_point)
        ):
            raise _no_class(table, column, row, text)
    if not with_point or not all(_WHOLE.fullmatch(text.strip()) for text in texts):
        return texts
    _check_spellings(table, column, values)
    return [_integer(text) for text in texts]


def read_classes_like(table: Table, column: str, known: Sequence[str], *, indexed: bool) -> list[str]:
    """Read the class name of each evaluation row from ``column``, matched to the training labels.

    A label that is written as in training is that class. Otherwise ``1.0`` is the class ``1`` if all classes are
    whole numbers, and ``TRUE`` is the class ``true`` if the only classes are true and false. Class names in the
    evaluation file itself take precedence.

    Args:
        table: The evaluation rows.
        column: Name of the column.
        known: The class names of the training rows.
        indexed: Whether a label may also be an index in ``known``.

    Returns:
        The class names; labels unknown in training are returned as they are written.

    Raises:
        UserError: A label is missing, not a plain value, or ambiguous.
    """
    if own := table.class_names.get(column):
        named = _by_index(table, column, own)
        if indexed or set(named) <= set(known):
            return named
    if indexed:
        return read_known_classes(table, column, known)
    texts = [str(value) for value in _plain_values(table, column)]
    meanings = {text: next(_meanings(text, known), text) for text in set(texts)}
    return [meanings[text] for text in texts]


def read_known_classes(table: Table, column: str, names: Sequence[str]) -> list[str]:
    """Read class names from ``column``, which contains names or indices in ``names``.

    Raises:
        UserError: As for `read_classes`; or a label is neither a name nor an index, or all of them may be either.
    """
    by_index = {str(index): name for index, name in enumerate(names)}
    texts = [str(value) for value in _plain_values(table, column)]
    meanings = {text: text if text in names else next(_meanings(text, list(by_index)), text) for text in set(texts)}
    labels = [meanings[text] for text in texts]
    if unclear := [label for label in labels if label in names and by_index.get(label, label) != label]:
        if all(label in by_index for label in labels):
            if all(label in names for label in labels):
                raise UserError(
                    f"{table.name}: label {unclear[0]!r} in column {column!r} is the name of a class, and the index of "
                    f"{by_index[unclear[0]]!r}; give both files in the format of the training file"
                )
            return [by_index[label] for label in labels]
        by_index = {}
    classes = [label if label in names else by_index.get(label, label) for label in labels]
    for row, label in enumerate(classes):
        if label not in names:
            raise _unknown(table, column, row, label, names)
    return classes


def order_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort the distinct class names: by number when all are integers, else as strings."""
    names = sorted(set(labels))
    if all(_INTEGER.fullmatch(name) for name in names):
        names.sort(key=Decimal)  # not int(), which is limited to 4,300 digits
    return tuple(names)


def nearest_spelling(label: str, known: Collection[str]) -> str | None:
    """The class name that differs from a label only in blanks, case, or number spelling; None if there is none."""
    essence = _essence(label)
    return next((name for name in known if name != label and _essence(name) == essence), None)


def same_number(label: str, known: Collection[str]) -> str | None:
    """The one class name that spells the same whole number as a label, ``1.0`` for ``1``; None if there is none."""
    if not _WHOLE.fullmatch(label):
        return None
    found = [name for name in known if _WHOLE.fullmatch(name) and _integer(name) == _integer(label)]
    return found[0] if len(found) == 1 else None


def read_scores(table: Table, column: str) -> list[float]:
    """Read the score of each row from ``column``.

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


def _plain_values(table: Table, column: str) -> list[str | int | float]:
    """The labels of a column: strings, booleans, and exactly representable numbers."""
    values = _present(table, column)
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{table.at(row)}: label {column!r} is {value!r:.40}, not a plain value; "
                "write a string, a whole number or true/false, or name another column with --label"
            )
        if isinstance(value, float) and math.isinf(value):
            raise _no_class(table, column, row, str(value))
        if isinstance(value, float) and abs(value) >= _EXACT:
            raise UserError(
                f"{table.at(row)}: label {value} in column {column!r} is a floating-point number beyond 2**53, where "
                "several whole numbers become one; write the labels as integers or strings"
            )
    return values


def _by_index(table: Table, column: str, names: Sequence[str]) -> list[str]:
    """Class names of a column whose file defines the names of its indices."""
    classes = []
    for row, value in enumerate(_plain_values(table, column)):
        if isinstance(value, int | float) and not isinstance(value, bool) and value in range(len(names)):
            classes.append(names[int(value)])
        elif value in names:
            classes.append(str(value))
        else:
            raise _unknown(table, column, row, str(value), names)
    return classes


def _meanings(text: str, known: Collection[str]) -> Iterator[str]:
    """The known names that a label may mean, the most likely first."""
    if text in known:
        yield text
    number = _WHOLE.fullmatch(text.strip())
    if number and number[3] is not None and all(_WHOLE.fullmatch(name) for name in known):
        yield from (name for name in (number[1] + number[2], _integer(text)) if name in known)
    truths = {name.casefold(): name for name in known}
    if len(truths) == len(known) and truths.keys() <= {"true", "false"} and text.casefold() in truths:
        yield truths[text.casefold()]


def _check_spellings(table: Table, column: str, values: Sequence[Any]) -> None:
    """Raise if different strings would become one integer. Numbers in JSON are compared by value."""
    spellings: dict[str, tuple[str, int]] = {}
    for row, value in enumerate(values):
        if isinstance(value, str):
            other, first = spellings.setdefault(_integer(value), (value.strip(), row))
            if other != value.strip():
                raise UserError(
                    f"{table.at(row)}: label {value.strip()!r} in column {column!r} is the same number as {other!r} "
                    f"({table.unit} {table.places[first]}); write it in one way, or give the classes names that are "
                    "not numbers"
                )


def _integer(text: str) -> str:
    """A whole number without point, leading zeros and blanks. Not int(), which is limited to 4,300 digits."""
    number = _WHOLE.fullmatch(text.strip())
    if number is None:
        raise ValueError(f"{text!r} is not a whole number")
    digits = number[2].lstrip("0") or "0"
    return f"-{digits}" if number[1] == "-" and digits != "0" else digits


def _essence(label: str) -> str:
    text = " ".join(label.split()).casefold()
    return _integer(text) if _WHOLE.fullmatch(text) else text


def _number(value: object) -> float | None:
    """Read a number; None if it is not one. Not float(), which also accepts ``1_0`` and ``nan``."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond the range of floats
        return math.inf


def _no_class(table: Table, column: str, row: int, label: str) -> UserError:
    return UserError(
        f"{table.at(row)}: label {label} in column {column!r} is not a class; for scores give --task regression, for "
        "classes give names that are not numbers"
    )


def _unknown(table: Table, column: str, row: int, label: str, names: Sequence[str]) -> UserError:
    choice = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    return UserError(
        f"{table.at(row)}: label {label!r} in column {column!r} is none of {choice}; give a file with labels"
    )
