"""Sentence Transformers: ``SentenceTransformerTrainer`` with a method, also for losses in which examples meet."""

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

    An example is a row of the data set, with all its texts. For a method that looks at single examples each column is
    therefore a call of the model: put together in one call its rows would be texts.

    Parameters of the losses (``SoftmaxLoss.classifier``) are trained, and so they are perturbed with the model's.
    """

    rows_are_examples: ClassVar[bool | None] = True
    loss: Any

    def trained_module(self) -> nn.Module:
        """The model, and with it the losses that have parameters of their own."""
        losses = list(self.loss.values()) if isinstance(self.loss, Mapping) else [self.loss]
        known = {id(p) for p in self.model.parameters()}
        own = [loss for loss in losses if any(p.requires_grad and id(p) not in known for p in loss.parameters())]
        return _WithLosses(self.model, own) if own else super().trained_module()

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As there."""
        with column_merging_disabled() if self.method is not None and self.method.per_example else nullcontext():
            return super().compute_loss(*args, **kwargs)


class _WithLosses(nn.Module):
    """A model and losses with parameters, to be perturbed together. What is called is the model.

    Args:
        model: The model.
        losses: They may hold the model, whose parameters count once.
    """

    def __init__(self, model: nn.Module, losses: Iterable[nn.Module]) -> None:
        super().__init__()
        self.model, self.losses = model, nn.ModuleList(losses)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """On the model: its calls show what the examples are."""
        return self.model.register_forward_pre_hook(*args, **kwargs)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """On the model."""
        return self.model.register_forward_hook(*args, **kwargs)
