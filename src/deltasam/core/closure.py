"""The closure protocol: what a closure may return, and how a method reads it.

A closure runs one forward pass and returns

- a scalar loss, or
- a 1-D tensor with one loss per example, or
- an object with ``.loss`` (any Hugging Face output, ``Output``) or a mapping with ``"loss"``, holding one of the two.
  Where it is a scalar, ``example_losses``, a function without arguments, may return one loss per example to methods
  that need it. ``logits``, and optionally ``logit_weights``, are for methods that compare predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_EXPECTED = "a scalar loss, a 1-D tensor with one loss per example, or an output with .loss"


@dataclass(frozen=True)
class Output:
    """Output of a closure for methods that compare predictions, where these cannot be derived from the loss.

    Attributes:
        loss: One loss [], or one per example [n].
        logits: Logits [..., classes], or one number per example [n] or [n, 1]; None: those the model returned.
        logit_weights: Weight of each prediction's own loss in the (mean) loss [logits.shape[:-1]]: 0 where it does not
            count, else one over the number that do, times every other factor of the loss. None: derived from how the
            loss depends on the logits.
    """

    loss: Tensor
    logits: Tensor | None = None
    logit_weights: Tensor | None = None

    def times(self, factor: float) -> Output:
        """The same output with the loss multiplied by a factor."""
        weights = self.logit_weights
        return Output(factor * self.loss, self.logits, None if weights is None else factor * weights)


def part_of(output: object, name: str) -> Any:
    """A named part of a closure's or a model's output; None if it has no such part."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def loss_of(output: object) -> Tensor:
    """Mean loss [] of a closure's output; one loss per example [n] is averaged.

    Raises:
        TypeError: The output contains no loss.
        ValueError: The loss has more than one axis, is empty, or does not depend on any trainable weight.
    """
    loss = losses_of(output)
    return loss.mean() if loss.ndim == 1 else loss


def example_losses_of(output: object, method: str) -> Tensor:
    """One loss per example [n] of a closure's output.

    Args:
        output: The closure's output.
        method: Name of the calling method, for the error message.

    Raises:
        TypeError: The output contains no loss.
        ValueError: It is not one loss per example.
    """
    given = part_of(output, "example_losses")
    losses = losses_of(output if given is None else given())
    if losses.ndim != 1:
        raise ValueError(
            f"{method} needs one loss per example, but the closure returned a scalar; return a 1-D tensor, "
            f"for example F.cross_entropy(model(x), y, reduction='none')"
        )
    return losses


def losses_of(output: object) -> Tensor:
    """Loss of a closure's output, not averaged: one loss [], or one per example [n].

    Raises:
        TypeError: The output contains no loss.
        ValueError: The loss has more than one axis, is empty, or does not depend on any trainable weight.
    """
    loss = output if isinstance(output, Tensor) else part_of(output, "loss")
    if not isinstance(loss, Tensor):
        hint = " (its loss is None: were labels given?)" if loss is None and output is not None else ""
        raise TypeError(f"the closure returned {type(output).__name__}{hint}; it must return {_EXPECTED}")
    if loss.ndim > 1 or loss.numel() == 0:
        raise ValueError(f"the closure returned a loss of shape {list(loss.shape)}; it must return {_EXPECTED}")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on any trainable weight; does the closure detach it, run under "
            "torch.no_grad(), or are all parameters frozen?"
        )
    return loss
