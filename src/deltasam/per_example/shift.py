"""Norms of per-example gradients, and a pass in which every example has adversarial weights of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.per_example.record import Record, rows_like, rows_of
from deltasam.per_example.rules import Rule


def gradient_norms(record: Record, gradients: list[Tensor], groups: int) -> Tensor:
    """Norm of the summed gradient of each group of examples, over all parameters [groups]."""
    squares = [
        Rule.registry[type(call.layer)].square_norm(call.layer, *rows_of(call, b, groups))
        for call, b in zip(record.calls, gradients, strict=True)
    ]
    return torch.stack(squares).sum(0).clamp(min=0).sqrt()


@contextmanager
def shifted(record: Record, gradients: list[Tensor], factors: Tensor) -> Iterator[None]:
    """Layers compute as with the weights ``w + factors_i g_i`` for every example of group i.

    No weight is moved: the outputs are. Forward and backward belong inside. A group whose factor is 0 is left alone,
    whatever its gradient.

    Args:
        record: Of the first pass.
        gradients: With respect to each call's output.
        factors: One per group [groups].
    """
    groups = len(factors)

    def shifting(call: Any, b: Tensor) -> Any:
        rule = Rule.registry[type(call.layer)]
        x, rows = rows_of(call, b, groups)
        c = factors.to(rows.dtype)[:, None, None]
        cb = torch.where(c > 0, c * rows, torch.zeros_like(rows))

        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            new = rows_like(call, args[0].expand(len(b), *args[0].shape[1:]), groups)
            return y + rule.shift(layer, new, x, cb).view(b.shape)

        return hook

    handles = [
        call.layer.register_forward_hook(shifting(call, b)) for call, b in zip(record.calls, gradients, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
