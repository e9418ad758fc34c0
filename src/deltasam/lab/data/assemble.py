"""Build `TextData` from tables: check the rows, encode the labels, split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset, Features, Value

from deltasam.core.warn import warn
from deltasam.errors import UserError
from deltasam.lab.data.columns import Columns, read_texts
from deltasam.lab.data.dataset import TextData, fingerprint, said
from deltasam.lab.data.delimited import without_blanks
from deltasam.lab.data.labels import (
    nearest_spelling,
    order_classes,
    read_classes,
    read_classes_like,
    read_known_classes,
    read_scores,
)
from deltasam.lab.data.split import split_rows
from deltasam.lab.data.table import Table

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Goal:
    """Learning goal of a table: kind of labels, metrics, classes.

    Attributes:
        kind: Whether labels are classes or scores.
        metric: As in `TextData`.
        label_names: The classes in order, if they are known beforehand; empty to take them from the training rows,
            or from the class names in their file.
        also: As in `TextData`.
    """

    kind: Kind
    metric: str
    label_names: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


def goal_of(task: str) -> Goal:
    """The goal that ``--task`` names, with its usual metric."""
    if task == "classification":
        return Goal("classification", "accuracy")
    if task == "regression":
        return Goal("regression", "spearman")
    raise UserError(f"--task {task}: unknown; give classification or regression")


def assemble(
    name: str,
    train: Table,
    evaluation: Table | float,
    columns: Columns,
    goal: Goal,
    further: Mapping[str, Table] | None = None,
) -> TextData:
    """Build checked, encoded data from a training table and an evaluation table.

    Args:
        name: As in `TextData`.
        train: The training rows, or all rows.
        evaluation: The evaluation rows, or how much of ``train`` to hold out for them.
        columns: The columns to use in all tables.
        goal: Learning goal.
        further: More tables with evaluation rows, by name.

    Raises:
        UserError: A row cannot be used, or the labels do not define a task.
    """
    rows = {**_texts(train, columns), "label": _training_labels(train, columns.label, goal), "row": _rows(train)}
    _check_varied(train.name, rows["label"], columns.label)
    names: tuple[str, ...] = ()
    if goal.kind == "classification":
        names = goal.label_names or train.class_names.get(columns.label) or order_classes(rows["label"])
        _warn_of_blanks(train.name, columns.label, names)

    def read_like_train(table: Table) -> dict[str, list[Any]]:
        """Rows of an evaluation table; its labels must be among those of the training rows."""
        indexed = columns.label in train.class_names
        labels = _evaluation_labels(table, columns.label, goal, names, indexed=indexed)
        _check_known(table.name, labels, rows["label"], goal)
        return {**_texts(table, columns), "label": labels, "row": _rows(table)}

    others = {split: read_like_train(table) for split, table in (further or {}).items()}
    if isinstance(evaluation, Table):
        held_out = read_like_train(evaluation)
    else:
        if goal.kind == "classification":
            _check_repeated(train.name, rows["label"], columns.label)
        groups = rows["label"] if goal.kind == "classification" else ["any"] * len(rows["label"])
        kept, taken = split_rows(train.name, groups, evaluation, said(rows))
        rows, held_out = _pick(rows, kept), _pick(rows, taken)
    if goal.kind == "regression" and len(set(held_out["label"])) < 2:
        raise UserError(
            f"{name}: every evaluation row has the score {held_out['label'][0]:g}, so {goal.metric} is undefined; "
            "give other rows with --eval-data or more with --eval-size"
        )
    if goal.kind == "classification":
        indices = {name: index for index, name in enumerate(names)}
        for examples in (rows, held_out, *others.values()):
            examples["label"] = [indices[label] for label in examples["label"]]
    return from_columns(name, rows, held_out, goal, names, others)


def from_columns(
    name: str,
    train: dict[str, list[Any]],
    evaluation: dict[str, list[Any]],
    goal: Goal,
    names: tuple[str, ...],
    further: Mapping[str, dict[str, list[Any]]] | None = None,
) -> TextData:
    """Wrap columns that are already checked and encoded."""
    features = {column: Value("string") for column in train if column.startswith("text")}
    features["label"] = Value("int64" if goal.kind == "classification" else "float64")
    features["row"] = Value("int64")
    return TextData(
        name=name,
        train=Dataset.from_dict(train, Features(features)),
        evaluation=Dataset.from_dict(evaluation, Features(features)),
        kind=goal.kind,
        label_names=names,
        metric=goal.metric,
        fingerprint=fingerprint(train, evaluation, names, further),
        also=goal.also,
        further={split: Dataset.from_dict(rows, Features(features)) for split, rows in (further or {}).items()},
    )


def _texts(table: Table, columns: Columns) -> dict[str, list[Any]]:
    texts: dict[str, list[Any]] = {"text": read_texts(table, columns.text)}
    if columns.text_pair is not None:
        texts["text_pair"] = read_texts(table, columns.text_pair)
    return texts


def _rows(table: Table) -> list[int]:
    return list(range(len(table.places)))


def _training_labels(table: Table, column: str, goal: Goal) -> list[Any]:
    if goal.kind == "regression":
        return read_scores(table, column)
    if goal.label_names:
        return read_known_classes(table, column, goal.label_names)
    return read_classes(table, column)


def _evaluation_labels(table: Table, column: str, goal: Goal, names: tuple[str, ...], *, indexed: bool) -> list[Any]:
    if goal.kind == "regression" or goal.label_names:
        return _training_labels(table, column, goal)
    return read_classes_like(table, column, names, indexed=indexed)


def _pick(examples: dict[str, list[Any]], rows: Sequence[int]) -> dict[str, list[Any]]:
    return {column: [values[row] for row in rows] for column, values in examples.items()}


def _warn_of_blanks(where: str, column: str, names: Sequence[str]) -> None:
    """Warn that blanks are part of labels: in a CSV file, those after commas are rarely intended."""
    padded = [name for name in names if name != name.strip()]
    if padded:
        warn(
            f"{where}: labels in column {column!r} begin or end with a blank, which belongs to the class name: "
            f"{_shortened(padded)}; if they are not meant, remove them{without_blanks(where)}"
        )


def _check_varied(where: str, labels: list[Any], column: str) -> None:
    if len(set(labels)) < 2:
        raise UserError(
            f"{where}: every label is {labels[0]!r}, there is nothing to learn; "
            f"give rows with other labels, or another column than {column!r} with --label"
        )


def _check_repeated(where: str, labels: list[str], column: str) -> None:
    if len(labels) > 2 and len(set(labels)) == len(labels):
        raise UserError(
            f"{where}: every label in column {column!r} occurs once, so it is probably the wrong column; "
            "name another with --label, or give --task regression if these are scores"
        )


def _check_known(where: str, labels: list[Any], known: list[Any], goal: Goal) -> None:
    new = order_classes(set(labels) - set(known)) if goal.kind == "classification" else ()
    if new:
        raise UserError(
            f"{where}: labels that no training row has: {_shortened(new)}{_spelling_hint(new, known)}; "
            "correct them, delete these rows, or add training rows"
        )


def _spelling_hint(new: Sequence[str], known: list[str]) -> str:
    pairs = ((label, nearest_spelling(label, dict.fromkeys(known))) for label in new)
    label, near = next(((label, near) for label, near in pairs if near is not None), (None, None))
    return "" if near is None else f" (the training rows write {near!r} where {label!r} is written here)"


def _shortened(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
