"""Vectors in weight space: one tensor per parameter, or None where a vector is zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from deltasam.sharded import is_sharded, local, norm_of_parts

Vector = Sequence[Tensor | None]
HALVES = (torch.float16, torch.bfloat16)

# Differences are formed this many elements at a time, without memory of the model's size: on a CPU in its cache,
# elsewhere in few launches.
_CHUNK_ON_CPU, _CHUNK = 1 << 18, 1 << 27


def norm(vector: Vector) -> Tensor:
    """Euclidean norm [] over all entries, accumulated in float32 or wider; 0 for an empty vector."""
    tensors = [_real(t.detach()) for t in vector if t is not None and t.numel()]
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


@torch.no_grad()
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
    ends, starts = ([_real(t) for t in tensors] for tensors in (ends, starts))
    dtype = _accumulation_dtype(ends)
    norms: list[list[Tensor]] = [[] for _ in ends]
    for owners, rows in _groups(ends, starts, *([scales] if scales else [])):
        there, here, *units = ([wide.to(dtype) for wide in row] for row in rows)
        differences = torch._foreach_sub(there, here)
        for unit in units:
            differences = torch._foreach_div(differences, unit)
        for owner, part in zip(owners, torch._foreach_norm(differences), strict=True):
            norms[owner].append(part.to(ends[0].device))
    if not any(map(is_sharded, of)):
        parts = [n for parts in norms for n in parts]
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())
    none = torch.zeros((), dtype=dtype, device=ends[0].device) if ends else torch.zeros(())
    return norm_of_parts([torch.linalg.vector_norm(torch.stack(parts or [none])) for parts in norms], of)


def _groups(ends: Sequence[Tensor], *others: Vector) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Tensors and what belongs to each, so many at a time as make a chunk; one that is larger is cut.

    Yields:
        The numbers of the tensors, and the pieces of each argument.
    """
    owners: list[int] = []
    rows: list[tuple[Tensor, ...]] = []
    size = 0
    for number, (end, *belonging) in enumerate(zip(ends, *others, strict=True)):
        most = _CHUNK_ON_CPU if end.device.type == "cpu" else _CHUNK
        whole = (end, *(t if t.shape == end.shape else t.expand_as(end) for t in belonging))
        cut = end.numel() > most
        for piece in zip(*(t.flatten().split(most) for t in whole), strict=True) if cut else [whole]:
            if rows and (size + piece[0].numel() > most or end.device != rows[0][0].device):
                yield owners, list(map(list, zip(*rows, strict=True)))
                owners, rows, size = [], [], 0
            if piece[0].numel():
                owners.append(number)
                rows.append(piece)
                size += piece[0].numel()
    if rows:
        yield owners, list(map(list, zip(*rows, strict=True)))


def length_to(radius: float, norm: Tensor) -> float:
    """The factor that brings a vector of this norm to this radius; 0 where the norm is 0, inf or NaN.

    No small constant is added to the norm, so any positive scale of the loss cancels exactly.
    """
    value = norm.item()
    return radius / value if value > 0 else 0.0  # radius / inf is 0, and NaN is not above 0


@torch.no_grad()
def add(params: Sequence[Tensor], vector: Vector, factor: float) -> None:
    """Add ``factor * vector`` to the parameters in place, with a single rounding."""
    pairs = [(param, wide(step)) for param, step in zip(params, vector, strict=True) if step is not None]
    if pairs:
        torch._foreach_add_([param for param, _ in pairs], [step for _, step in pairs], alpha=factor)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    return x.float() if x.dtype in HALVES else x


def _real(x: Tensor) -> Tensor:
    """A complex tensor as two real ones."""
    return torch.view_as_real(x) if x.is_complex() else x


def _norm_of_all(norms: list[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    if any(map(is_sharded, tensors)):
        return norm_of_parts(norms, tensors)
    return torch.linalg.vector_norm(torch.stack(norms))


def _accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
