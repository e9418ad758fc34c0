"""Sentence Transformers: ``SentenceTransformerTrainer`` with a method, also for losses in which examples meet."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from deltasam.integrations.missing import missing

try:
    import sentence_transformers
except ModuleNotFoundError as error:
    raise missing("sentence-transformers", error) from error

from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin
from deltasam.passes import in_later_pass

try:
    from sentence_transformers.base.losses import column_merging_disabled
except ImportError:  # before version 6 nothing was merged
    column_merging_disabled = nullcontext

__all__ = ["SentenceTransformerTrainer", "SentenceTransformerTrainingArguments"]


@dataclass
class SentenceTransformerTrainingArguments(MethodArguments, sentence_transformers.SentenceTransformerTrainingArguments):
    """``sentence_transformers.SentenceTransformerTrainingArguments`` with ``method``."""


class SentenceTransformerTrainer(MethodTrainerMixin, sentence_transformers.SentenceTransformerTrainer):
    """``sentence_transformers.SentenceTransformerTrainer`` with ``method``.

    An example is a row of the data set, with all its texts. For a method that looks at single examples each column is
    therefore a call of the model: put together in one call its rows would be texts.
    """

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As there."""
        with column_merging_disabled() if self.method is not None and self.method.per_example else nullcontext():
            return super().compute_loss(*args, **kwargs)

    def track_loss_components(self, loss: dict[str, Any]) -> None:
        """As there, in the first pass only: the losses at perturbed weights are not the model's."""
        if not in_later_pass():
            super().track_loss_components(loss)
