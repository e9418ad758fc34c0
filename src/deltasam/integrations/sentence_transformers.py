"""Sentence Transformers: ``SentenceTransformerTrainer`` with a method, also for losses in which examples meet."""

from __future__ import annotations

from dataclasses import dataclass

from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin
from deltasam.integrations.missing import missing

try:
    import sentence_transformers
except ModuleNotFoundError as error:
    raise missing("sentence-transformers", error) from error


@dataclass
class SentenceTransformerTrainingArguments(MethodArguments, sentence_transformers.SentenceTransformerTrainingArguments):
    """``sentence_transformers.SentenceTransformerTrainingArguments`` with ``method``."""


class SentenceTransformerTrainer(MethodTrainerMixin, sentence_transformers.SentenceTransformerTrainer):
    """``sentence_transformers.SentenceTransformerTrainer`` with ``method``."""
