"""A loss whose gradient is given, so that a vector reaches ``.grad`` on the way that every gradient takes.

Data-parallel reduction, gradient hooks and the scaling of a training stack happen in a backward and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltasam.core.torch_internals import foreach


def standing_for(loss: Tensor, params: Sequence[Tensor], gradients: list[Tensor], scale: float) -> Tensor:
    """The loss [], with ``gradients / scale`` as its gradient with respect to the parameters.

    Args:
        loss: Loss [], detached.
        params: The parameters.
        gradients: One for each. The list is emptied by the backward, whose memory they become.
        scale: The factor by which a loss is multiplied before its gradient is taken, and the gradients have been.
    """
    result: Tensor = _Given.apply(loss, gradients, scale, *params)
    return result


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], scale: float, *_: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *of_loss: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = of_loss
        gradients = tuple(ctx.gradients)
        ctx.gradients.clear()  # whoever holds a gradient beside autograd costs it a copy
        if factor.device.type != "cpu" or factor.item() != ctx.scale:  # elsewhere, to look costs more than to multiply
            gradients = foreach.mul(gradients, factor / ctx.scale)
        return None, None, None, *gradients
