"""Norms of per-example gradients, and a pass in which every example has adversarial weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltasam.per_example.record import Call, Record


def gradient_norms(record: Record, groups: int) -> Tensor:
    """Norm of the summed gradient of each group of examples, over all parameters [groups]."""
    squares = [call.rule.square_norm(call.layer, *call.rows(groups)) for call in record.calls]
    return torch.stack(squares).sum(0).clamp(min=0).sqrt()


@contextmanager
def shifted(record: Record, factors: Tensor) -> Iterator[None]:
    """Layers compute as with the weights ``w + factors_i g_i`` for every example of group i.

    No weight is moved: the outputs are. Forward and backward belong inside. A group whose factor is 0 is left alone,
    whatever its gradient.

    Args:
        record: Of the first pass, with its gradients.
        factors: One per group [groups].
    """
    handles = [call.layer.register_forward_hook(_shifting(call, factors)) for call in record.calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shifting(call: Call, factors: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    x, b = call.rows(len(factors))
    c = factors.to(b.dtype)[:, None, None]
    cb = torch.where(c > 0, c * b, torch.zeros_like(b))

    def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        new = args[0].expand(len(call.b), *args[0].shape[1:])  # positions may have one row for the whole batch
        return y + call.rule.shift(layer, call.rule.rows(new, len(factors)), x, cb).view(call.b.shape)

    return hook
