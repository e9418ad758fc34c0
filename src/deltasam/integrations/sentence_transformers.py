"""Sentence Transformers: ``SentenceTransformerTrainer`` with a method, also for losses in which examples interact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from deltasam.integrations.missing import missing

try:
    import sentence_transformers
except ModuleNotFoundError as error:
    raise missing("sentence-transformers", error) from error

from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin

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

    An example is a row of the data set, with all its texts. For a per-example method the model is therefore called once
    per column: in a merged call the rows would be texts.

    Parameters of the losses (``SoftmaxLoss.classifier``) are trained, so they are perturbed with the model's.
    """

    rows_are_examples: ClassVar[bool | None] = True
    loss: Any

    def trained_module(self) -> nn.Module:
        """The model, together with the losses that have their own parameters."""
        losses = list(self.loss.values()) if isinstance(self.loss, Mapping) else [self.loss]
        known = {id(p) for p in self.model.parameters()}
        own = [loss for loss in losses if any(p.requires_grad and id(p) not in known for p in loss.parameters())]
        return _WithLosses(self.model, own) if own else super().trained_module()

    def compute_loss(self, *args: object, **kwargs: object) -> Any:
        """The parent's loss, with one call of the model per column for per-example methods."""
        with column_merging_disabled() if self.method is not None and self.method.per_example else nullcontext():
            return super().compute_loss(*args, **kwargs)


class _WithLosses(nn.Module):
    """A model and losses with parameters, perturbed together. Only the model is called.

    Args:
        model: The model.
        losses: The losses; they may hold the model, whose parameters count once.
    """

    def __init__(self, model: nn.Module, losses: Iterable[nn.Module]) -> None:
        super().__init__()
        self.model, self.losses = model, nn.ModuleList(losses)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Registers on the model, whose calls define the examples."""
        return self.model.register_forward_pre_hook(*args, **kwargs)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Registers on the model."""
        return self.model.register_forward_hook(*args, **kwargs)
