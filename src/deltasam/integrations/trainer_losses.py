"""One loss per example from logits and labels, in a way that is checked against the trainer's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100


@dataclass(frozen=True)
class TrainerOutput:
    """What a trainer's closure returns.

    Attributes:
        loss: As it goes into the backward [].
        example_losses: One per example [n], with this mean.
    """

    loss: Tensor
    example_losses: Callable[[], Tensor]


def example_losses(
    output: Any, labels: Tensor | None, loss: Tensor, *, items: Any, smoothing: float, scales: Sequence[float]
) -> Tensor:
    """One loss per example [n], with the trainer's loss as their mean.

    Losses are made of logits and labels in few ways: squared error, binary cross entropy, cross entropy of classes, of
    tokens, of following tokens. The one that gives the trainer's loss is taken, and none is an error.

    Args:
        output: What the model returned.
        labels: Of the batch.
        loss: The trainer's [].
        items: How many tokens or examples a sum over them was divided by; None: those of this batch.
        smoothing: Label smoothing.
        scales: What the loss may have been multiplied with.

    Raises:
        ValueError: It is another loss.
    """
    logits = output.get("logits") if hasattr(output, "get") else getattr(output, "logits", None)
    if isinstance(logits, Tensor) and labels is not None:
        for parts, count in _ways(logits.float(), labels, smoothing):
            for divisor in (count,) if items is None else (count, items):
                for scale in scales:
                    contributions = parts * (scale / divisor)
                    if torch.isclose(contributions.detach().sum(), loss.detach().float(), rtol=1e-3, atol=1e-6):
                        return (contributions * len(parts)).to(loss.dtype)
    raise ValueError(
        "the method needs one loss per example, and the trainer's loss is none of those that are known of logits and "
        "labels; override example_losses in your trainer, or use a method that needs a scalar loss only (sam, asam, "
        "per_instance_sam, delta_sam:weights=norms)"
    )


def _ways(logits: Tensor, labels: Tensor, smoothing: float) -> Iterator[tuple[Tensor, Tensor | int]]:
    """What each example [n] adds to the loss, and what the sum is divided by."""
    n = len(logits)
    if labels.is_floating_point():
        if logits.numel() == labels.numel():
            yield (logits.view_as(labels) - labels).square().reshape(n, -1).sum(1), labels.numel()
            if labels.ndim > 1:
                bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
                yield bce.reshape(n, -1).sum(1), labels.numel()
        return
    if logits.shape[:-1] == labels.shape:
        yield _cross_entropy(logits, labels, smoothing)
        if labels.ndim == 2:
            yield _cross_entropy(logits[:, :-1], labels[:, 1:], smoothing)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    counted = labels != _IGNORED
    losses = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=_IGNORED, label_smoothing=smoothing, reduction="none"
    )
    return losses.view(len(labels), -1).sum(1), counted.sum().clamp(min=1)
