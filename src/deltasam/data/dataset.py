"""The one shape all data ends in, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TextData:
    """Text with one label per row, split into training and evaluation.

    Attributes:
        name: What to call it in tables and reports: ``demo``, ``my.csv``, ``glue/rte``.
        train: Columns ``text`` [str], ``text_pair`` [str, only where there are pairs], ``label`` [int class
            index, or float for regression], ``row`` [int, the row in the source: traces an example back].
        evaluation: The same columns. No row of it is in ``train``.
        kind: ``classification`` or ``regression``.
        label_names: The name of each class, in the order of the class indices. Empty for regression.
        metric: The evaluation metric that ranks checkpoints and methods: ``accuracy``, ``matthews``, ``f1``,
            ``pearson``, ``spearman``. All are better when larger.
        fingerprint: SHA-256 over the contents of both splits; equal data, equal fingerprint.
    """

    name: str
    train: Dataset
    evaluation: Dataset
    kind: Literal["classification", "regression"]
    label_names: tuple[str, ...]
    metric: str
    fingerprint: str

    @property
    def has_pairs(self) -> bool:
        """Whether each row holds two texts."""
        return "text_pair" in self.train.column_names
