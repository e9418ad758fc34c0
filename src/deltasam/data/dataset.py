"""The one shape all data ends in, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from deltasam.data.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

CLEAN_LABEL = "clean_label"


@dataclass(frozen=True)
class TextData:
    """Text with one label per row, split into training and evaluation.

    Attributes:
        name: What to call it in tables and reports: ``demo``, ``my.csv``, ``glue/rte``.
        train: Columns ``text`` [str], ``text_pair`` [str, only where there are pairs], ``label`` [int class
            index, or float for regression], ``row`` [int, the row in the source: traces an example back];
            with label noise also ``clean_label``, the label as it was: a row is noisy where the two differ.
        evaluation: The same columns. No row of it is in ``train``.
        kind: ``classification`` or ``regression``.
        label_names: The name of each class, in the order of the class indices. Empty for regression.
        metric: The evaluation metric that ranks checkpoints and methods: ``accuracy``, ``matthews``, ``f1``,
            ``pearson``, ``spearman``. All are better when larger.
        fingerprint: SHA-256 over the contents of all splits; equal data, equal fingerprint.
        also: Metrics that are reported beside ``metric``.
        further: More evaluation splits by name, ``mismatched``; their metrics end in it, ``accuracy_mismatched``.
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

    @property
    def has_pairs(self) -> bool:
        """Whether each row holds two texts."""
        return "text_pair" in self.train.column_names

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics that results on this data are reported by, the main one first."""
        own = (self.metric, *self.also)
        return (*own, *(f"{metric}_{split}" for split in self.further for metric in own))

    def with_train(self, train: Dataset) -> TextData:
        """The same with other training rows, and the fingerprint of those."""
        further = {split: rows[:] for split, rows in self.further.items()}
        found = fingerprint(train[:], self.evaluation[:], self.label_names, further)
        return replace(self, train=train, fingerprint=found)
