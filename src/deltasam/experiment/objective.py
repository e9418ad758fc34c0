"""From a batch to logits, and from logits to one loss per example."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss


def logits_of(model: nn.Module, inputs: dict[str, Tensor], precision: str) -> Tensor:
    """The model's logits [rows, outputs] in float32; ``bf16`` runs the model under autocast."""
    device = next(iter(inputs.values())).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(**inputs).logits
    return logits.float()


def example_losses(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """One loss per example [rows]: cross entropy in nats, or the squared error for regression."""
    if kind == "regression":
        return mse_loss(logits[:, 0], labels, reduction="none")
    return cross_entropy(logits, labels, reduction="none")
