"""``x[index] = value``: the same as a function, and which example each place belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def written(x: Tensor, index: Any, value: Any) -> Tensor:
    """What x is after ``x[index] = value``, as a new tensor; ``vmap`` may map any of the two.

    Args:
        x: Any tensor.
        index: As in ``x[index]``.
        value: A tensor or number.
    """
    places = torch.arange(x.numel(), device=x.device).view(x.shape)[index]
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    value = value.reshape(value.shape[max(0, value.ndim - places.ndim) :]).expand(places.shape)
    return x.flatten().scatter(0, places.flatten(), value.flatten()).view(x.shape)


def out_of_place(func: Callable[..., Tensor], name: str, *, is_mapped: bool) -> Callable[..., Tensor]:
    """A function that computes what an in-place one writes, as a new tensor.

    Args:
        func: The in-place one.
        name: Its name.
        is_mapped: Whether ``vmap`` maps what it writes into; if not, it cannot write there what is mapped.
    """
    if is_mapped:
        return lambda x, *others, **named: func(x.clone(), *others, **named)
    if name == "copy_":
        return lambda x, value, **_: written(x, ..., value)
    return getattr(Tensor, name.replace("__i", "__") if name.startswith("__") else name.removesuffix("_"))


def values_of_owners(x: Tensor, index: Any, values: Tensor) -> Tensor:
    """What to write by ``x[index] = ...`` where every row of x has a value of its own.

    Args:
        x: It is written into; its first axis is that of the rows [n, ...].
        index: As in ``x[index]``.
        values: One per row [n, *shape]; a single one would be broadcast to what the index selects.
    """
    depth = min(sum(map(_axes, index if isinstance(index, tuple) else (index,))), x.ndim)
    numbers = torch.arange(len(x), device=x.device).view(-1, *[1] * (depth - 1))
    owners = numbers.expand(x.shape[:depth])[index]  # of what the index picks along the axes that it names
    ndim = owners.ndim + x.ndim - depth
    shape = values.shape[1:]
    shape = torch.Size([1] * (ndim - len(shape))) + shape[max(0, len(shape) - ndim) :]
    named = shape[: owners.ndim]
    places = [
        torch.arange(size, device=x.device).view(-1, *[1] * (owners.ndim - 1 - axis)) for axis, size in enumerate(named)
    ]
    return values.reshape(len(x), *shape)[(owners, *places)]


def _axes(index: Any) -> int:
    """How many axes one part of an index stands for; an ellipsis may stand for all."""
    if index is None:
        return 0
    if index is Ellipsis:
        return torch.iinfo(torch.int32).max
    return index.ndim if isinstance(index, Tensor) and index.dtype == torch.bool else 1
