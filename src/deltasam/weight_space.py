"""Vectors in weight space: one tensor per parameter, or None where a vector is zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam.sharded import is_sharded, local, norm_of_parts

Vector = Sequence[Tensor | None]
HALVES = (torch.float16, torch.bfloat16)

# Differences are formed this many elements at a time: in the cache, and without memory of the model's size.
_CHUNK = 1 << 18


def norm(vector: Vector) -> Tensor:
    """Euclidean norm [] over all entries, accumulated in float32 or wider; 0 for an empty vector."""
    tensors = [t.detach() for t in vector if t is not None and t.numel()]
    if not tensors:
        return torch.zeros(())
    result = _norm(tensors, _accumulation_dtype(tensors))
    if not result.isfinite() and result.device.type != "mps":  # which has no float64
        return _norm(tensors, torch.float64)  # with a large loss scale squares may be infinite where gradients are not
    return result


def _norm(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    norms = torch._foreach_norm([local(t) for t in tensors], 2, dtype)
    return _norm_of_all([n.to(tensors[0].device) for n in norms], tensors)


def plus(a: Vector, b: Vector) -> list[Tensor | None]:
    """The sum of two vectors. Not in place: autograd may give one tensor as the gradient of two parameters."""
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def distance(
    ends: Sequence[Tensor], starts: Sequence[Tensor], scales: Vector | None = None, *, of: Sequence[Tensor] = ()
) -> Tensor:
    """Euclidean norm [] of ``(end - start) / scale`` over all parameters.

    Args:
        ends: One tensor per parameter; this process's part of it, where it is sharded.
        starts: Likewise.
        scales: Likewise.
        of: The parameters, where some may be sharded.
    """
    if not ends:
        return torch.zeros(())
    device, dtype = ends[0].device, _accumulation_dtype(ends)
    norms: list[list[Tensor]] = []
    for end, start, scale in zip(ends, starts, scales or [None] * len(ends), strict=True):
        step = [] if scale is None else [scale.expand_as(end).flatten().split(_CHUNK)]
        norms.append([torch.zeros((), dtype=dtype, device=device)] if not end.numel() else [])
        for a, b, *s in zip(end.flatten().split(_CHUNK), start.flatten().split(_CHUNK), *step, strict=True):
            difference = a.to(dtype) - b.to(dtype)
            norms[-1].append(torch.linalg.vector_norm(difference / s[0] if s else difference).to(device))
    if not any(map(is_sharded, of)):
        return torch.linalg.vector_norm(torch.stack([n for parts in norms for n in parts]))
    return norm_of_parts([torch.linalg.vector_norm(torch.stack(parts)) for parts in norms], of)


def length_to(radius: float, norm: Tensor) -> float:
    """The factor that brings a vector of this norm to this radius; 0 where the norm is 0, inf or NaN.

    No small constant is added to the norm, so any positive scale of the loss cancels exactly.
    """
    value = norm.item()
    return radius / value if value > 0 else 0.0  # radius / inf is 0, and NaN is not above 0


@torch.no_grad()
def add(params: Sequence[Tensor], vector: Vector, factor: float) -> None:
    """Add ``factor * vector`` to the parameters in place, with a single rounding."""
    for param, step in zip(params, vector, strict=True):
        if step is not None:
            param.add_(wide(step), alpha=factor)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    return x.float() if x.dtype in HALVES else x


def _norm_of_all(norms: list[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    if any(map(is_sharded, tensors)):
        return norm_of_parts(norms, tensors)
    return torch.linalg.vector_norm(torch.stack(norms))


def _accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
