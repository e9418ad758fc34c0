"""Logits of a batch, and one loss per example from logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

NO_TOKEN = -100
"""Label of positions without a token to predict."""


def logits_of(model: nn.Module, inputs: dict[str, Tensor], precision: str, **options: object) -> Tensor:
    """The model's logits [rows, ..., outputs] in float32; ``bf16`` runs the model under autocast."""
    device = next(iter(inputs.values())).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(**inputs, **options).logits
    return logits.float()


def example_losses(logits: Tensor, labels: Tensor, kind: str, smoothing: float = 0.0) -> Tensor:
    """One loss per example [rows]: cross entropy in nats, or the squared error for regression.

    Args:
        logits: Logits [rows, outputs].
        labels: Labels [rows].
        kind: ``classification`` or ``regression``.
        smoothing: The fraction of each label that is spread over all classes.
    """
    if kind == "regression":
        return mse_loss(logits[:, 0], labels, reduction="none")
    return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def token_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """One loss per token [rows, tokens] in nats, 0 where the label is ``NO_TOKEN``.

    Args:
        logits: Logits [rows, tokens, vocabulary].
        labels: Labels [rows, tokens].
        smoothing: The fraction of each label that is spread over the whole vocabulary.
    """
    return cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=NO_TOKEN, label_smoothing=smoothing
    )
