"""Sentence Transformers: ``SentenceTransformerTrainer`` with a method, also for losses in which examples meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin
from deltasam.integrations.missing import missing
from deltasam.passes import in_later_pass

try:
    import sentence_transformers
except ModuleNotFoundError as error:
    raise missing("sentence-transformers", error) from error


@dataclass
class SentenceTransformerTrainingArguments(MethodArguments, sentence_transformers.SentenceTransformerTrainingArguments):
    """``sentence_transformers.SentenceTransformerTrainingArguments`` with ``method``."""


class SentenceTransformerTrainer(MethodTrainerMixin, sentence_transformers.SentenceTransformerTrainer):
    """``sentence_transformers.SentenceTransformerTrainer`` with ``method``."""

    def track_loss_components(self, loss: dict[str, Any]) -> None:
        """As there, in the first pass only: the losses at perturbed weights are not the model's."""
        if not in_later_pass():
            super().track_loss_components(loss)
