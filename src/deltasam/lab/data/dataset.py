"""The interface of all data; and texts with labels, whatever source they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from deltasam.errors import UserError
from deltasam.lab.data.split import split_rows, stratified_order

if TYPE_CHECKING:
    from datasets import Dataset

CLEAN_LABEL = "clean_label"

SELECTION = "selection"
"""Suffix of the metrics of the selection rows, which choose the epoch: ``accuracy_selection``."""

SELECTED = "_selected"
"""Suffix of the metrics at the epoch chosen so far, where selection rows choose it: ``accuracy_selected``."""


class Data(Protocol):
    """Interface of the data of a run; a task is registered for each kind (``lab/train/tasks``)."""

    @property
    def name(self) -> str:
        """Name in tables and reports."""

    @property
    def metric(self) -> str:
        """The evaluation metric that ranks checkpoints and methods; better when larger."""

    @property
    def chosen_by(self) -> str:
        """The metric, among those of an evaluation, that chooses the epoch."""

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics that results are reported by, the main one first."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the contents: equal contents, equal fingerprint."""

    @property
    def train(self) -> Sized:
        """The training rows."""

    def take(self, size: int, seed: int) -> Data:
        """A sample of ``size`` training rows, drawn with a seed; the evaluation rows do not change.

        Raises:
            UserError: There are fewer.
        """

    def for_selection(self, held_out: float) -> Data:
        """Data for choosing hyper-parameters; it contains no evaluation data.

        Args:
            held_out: Training rows to hold out for evaluation, a fraction below 1 or a number of rows; ignored by data
                with a separate set for this.

        Raises:
            UserError: There are fewer rows.
        """

    def describe(self) -> dict[str, list[Any]]:
        """The training rows for people: ``row`` (its number in the source), ``text``, and ``label`` where there is one.

        With label noise also ``clean_label``.
        """


def said(columns: Mapping[str, list[Any]]) -> list[tuple[str, ...]]:
    """The text of each row, or both texts of a pair, exact to the last character."""
    return list(zip(*(columns[name] for name in ("text", "text_pair") if name in columns), strict=True))


@dataclass(frozen=True)
class TextData:
    """Text with one label per row, split into training and evaluation.

    Attributes:
        name: Name in tables and reports: ``demo``, ``my.csv``, ``glue/rte``.
        train: Columns ``text`` [str], ``text_pair`` [str, only where there are pairs], ``label`` [int class
            index, or float for regression], ``row`` [int, the row in the source: traces an example back];
            with label noise also ``clean_label``, the original label: a row is noisy where the two differ.
        evaluation: The same columns. No row of it is in ``train``.
        kind: ``classification`` or ``regression``.
        label_names: The name of each class, in the order of the class indices. Empty for regression.
        metric: The evaluation metric that ranks checkpoints and methods: ``accuracy``, ``matthews``, ``f1``,
            ``pearson``, ``spearman``. All are better when larger.
        fingerprint: SHA-256 over the contents of all splits; equal data, equal fingerprint.
        also: Metrics that are reported in addition to ``metric``.
        further: More evaluation splits by name, ``mismatched``; the suffix of their metrics, ``accuracy_mismatched``.
        selection: Rows that only choose the epoch (their labels may be wrong); None: the evaluation rows choose it.
    """

    name: str
    train: Dataset
    evaluation: Dataset
    kind: Literal["classification", "regression"]
    label_names: tuple[str, ...]
    metric: str
    fingerprint: str
    also: tuple[str, ...] = ()
    further: dict[str, Dataset] = field(default_factory=dict)
    selection: Dataset | None = None

    @property
    def chosen_by(self) -> str:
        """The metric, among those of an evaluation, that chooses the epoch."""
        return self.metric if self.selection is None else f"{self.metric.removesuffix(SELECTED)}_{SELECTION}"

    @property
    def splits(self) -> dict[str, Dataset]:
        """All splits that a model is evaluated on, by the suffix of their metrics' names."""
        chosen = {} if self.selection is None else {SELECTION: self.selection}
        return {"": self.evaluation, **self.further, **chosen}

    @property
    def has_pairs(self) -> bool:
        """Whether each row holds two texts."""
        return "text_pair" in self.train.column_names

    @property
    def evaluation_rows_in_training(self) -> int:
        """Number of evaluation rows, over all splits, with the text of a training row, whatever the labels are."""
        trained = set(said(self.train[:]))
        return sum(row in trained for split in self.splits.values() for row in said(split[:]))

    def take(self, size: int, seed: int) -> TextData:
        """A stratified sample of the training split; the evaluation split does not change.

        Args:
            size: The number of training rows to keep.
            seed: Seed of the sample: equal seeds, equal rows. With one seed, a smaller sample is part of a larger one.

        Returns:
            The smaller data, rows in the order of the source, with its own fingerprint.

        Raises:
            UserError: There are fewer rows than ``size``, or ``size`` is below the number of classes.
        """
        labels = self.train[:]["label"]
        groups = labels if self.kind == "classification" else [None] * len(labels)
        least = len(set(groups))
        if not least <= size <= len(groups):
            raise UserError(
                f"{self.name}: --train-size {size} is impossible; give from {least} (one row of each class) "
                f"to {len(groups)} (all training rows)"
            )
        return self.with_train(self.train.select(sorted(stratified_order(groups, seed)[:size])))

    def for_selection(self, held_out: float) -> TextData:
        """The training split alone, with a fixed stratified part of it for evaluation.

        Args:
            held_out: A fraction below 1, or a number of rows.

        Raises:
            UserError: The size is impossible.
        """
        labels = self.train[:]["label"]
        groups = list(map(str, labels)) if self.kind == "classification" else ["any"] * len(labels)
        train, evaluation = split_rows(self.name, groups, held_out, said(self.train[:]), option="held_out")
        reduced = replace(self, evaluation=self.train.select(evaluation), further={}, selection=None)
        return reduced.with_train(self.train.select(train))

    def describe(self) -> dict[str, list[Any]]:
        """The training rows in readable form: pairs joined into one text, classes by name, scores unchanged."""
        columns = self.train[:]
        pairs = (columns[name] for name in ("text", "text_pair") if name in columns)
        found = {"row": columns["row"], "text": [" | ".join(pair) for pair in zip(*pairs, strict=True)]}
        for name in ("label", CLEAN_LABEL):
            if name in columns:
                named = self.kind == "classification"
                found[name] = [self.label_names[i] for i in columns[name]] if named else list(columns[name])
        return found

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics that results on this data are reported by, the main one first."""
        own = (self.metric, *self.also)
        return (*own, *(f"{metric}_{split}" for split in self.further for metric in own))

    def with_train(self, train: Dataset) -> TextData:
        """The same data with other training rows, and the matching fingerprint."""
        further = {name: rows[:] for name, rows in self.splits.items() if name}
        found = fingerprint(train[:], self.evaluation[:], self.label_names, further)
        return replace(self, train=train, fingerprint=found)


Columns = Mapping[str, list[Any]]


def fingerprint(
    train: Columns, evaluation: Columns, label_names: Sequence[str], further: Mapping[str, Columns] | None = None
) -> str:
    """Compute the SHA-256 over the contents of the splits, in order, and the names of the classes.

    Args:
        train: The columns of the training split.
        evaluation: The columns of the evaluation split.
        label_names: The class names, by index.
        further: The columns of more evaluation splits, by name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(list(label_names)).encode())
    for name, split in [("", train), ("", evaluation), *(further or {}).items()]:
        digest.update(name.encode() + json.dumps(list(split)).encode())
        for row in zip(*split.values(), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
