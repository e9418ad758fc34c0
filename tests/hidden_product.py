"""A product that PyTorch's functions do not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Hidden(torch.autograd.Function):
    """Of the examples with a vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradients[0] * w, (gradients[0] * x).sum(0)
