"""Vectors in weight space: one tensor per parameter, or None where a vector is zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltasam.core.sharding import is_sharded, local, norm_of_parts
from deltasam.core.torch_internals import foreach

Vector = Sequence[Tensor | None]
HALF_DTYPES = (torch.float16, torch.bfloat16)

# Differences are computed in chunks of this many elements, without memory of the model's size: on a CPU they fit in
# its cache, elsewhere they take few kernel launches.
_CHUNK_ON_CPU, _CHUNK = 1 << 18, 1 << 27

# Up to this many elements, a copy takes less time than a kernel launch.
_SMALL = 1 << 12


TINY = 1e-15
"""The square of a smaller norm may underflow to 0 in float32."""


class Length(NamedTuple):
    """A norm [], and its value as a number: one device sync for both."""

    norm: Tensor
    value: float


def norm(vector: Vector) -> Tensor:
    """Euclidean norm [] over all entries, accumulated in float32 or wider; 0 for an empty vector."""
    return length(vector).norm


def length(vector: Vector) -> Length:
    """Euclidean norm over all entries, as a tensor and as a number."""
    tensors = [_real(t.detach()) for t in vector if t is not None and t.numel()]
    if not tensors:
        return Length(torch.zeros(()), 0.0)
    result = _norm(tensors, _accumulation_dtype(tensors))
    value = result.item()
    if (not math.isfinite(value) or value < TINY) and result.device.type != "mps":  # which has no float64
        # With a large loss scale squares may overflow where gradients do not; with a small one they may underflow.
        result = _norm(tensors, torch.float64)
        value = result.item()
    return Length(result, value)


def _norm(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    if not any(map(is_sharded, tensors)):
        return _norm_of_all(tensors, dtype)
    norms = foreach.norm([local(t) for t in tensors], 2, dtype)
    return norm_of_parts([n.to(tensors[0].device) for n in norms], tensors)


def _norm_of_all(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Euclidean norm [] over all tensors; small ones are concatenated, which is cheaper than a launch for each."""
    large: list[Tensor] = []
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        if t.numel() > _SMALL:
            large.append(t)
        else:
            small.setdefault((t.device, t.dtype), []).append(t.flatten())
    norms = foreach.norm([*large, *map(torch.cat, small.values())], 2, dtype)
    return torch.linalg.vector_norm(torch.stack([n.to(tensors[0].device) for n in norms]))


def projection(a: Vector, onto: Vector) -> float:
    """The factor c for which ``a - c * onto`` is orthogonal to ``onto``, over all entries; 0 where that is 0.

    One device sync.
    """
    pairs = [(x, y) for x, y in zip(a, onto, strict=True) if y is not None and y.numel()]
    if not pairs:
        return 0.0
    product, square = _products(pairs, torch.float32)
    if (
        not (math.isfinite(square) and math.isfinite(product) and square >= TINY**2)
        and pairs[0][1].device.type != "mps"
    ):
        product, square = _products(pairs, torch.float64)  # squares may overflow or underflow where gradients do not
    return product / square if square else 0.0


def _products(pairs: Sequence[tuple[Tensor | None, Tensor]], dtype: torch.dtype) -> tuple[float, float]:
    """The sums of ``x * y`` and of ``y * y``, accumulated in this type or wider."""
    device = pairs[0][1].device
    products, squares = [], []
    for x, y in pairs:
        right = y.flatten().to(torch.promote_types(y.dtype, dtype))
        squares.append(torch.vdot(right, right).real.to(device))
        if x is not None:
            products.append(torch.vdot(x.flatten().to(right.dtype), right).real.to(device))
    nothing = squares[0].new_zeros(())
    product, square = torch.stack([sum(products, nothing), sum(squares, nothing)]).tolist()
    return product, square


def plus(a: Vector, b: Vector, factor: float = 1.0) -> list[Tensor | None]:
    """``a + factor * b``. Not in place: autograd may return one tensor as the gradient of two parameters."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    sums = iter(foreach.add(*map(list, zip(*both, strict=True)), alpha=factor) if both else ())

    def entry(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        if x is None or y is None:
            return x if y is None else y if factor == 1 else y * factor
        return next(sums)

    return [entry(x, y) for x, y in zip(a, b, strict=True)]


def times(vector: Vector, factor: float) -> list[Tensor | None]:
    """A vector multiplied by a number; not in place."""
    there = [t for t in vector if t is not None]
    products = iter(foreach.mul(there, factor) if there else ())
    return [None if t is None else next(products) for t in vector]


@torch.no_grad()
def distance(
    ends: Sequence[Tensor], starts: Sequence[Tensor], scales: Vector | None = None, *, of: Sequence[Tensor] = ()
) -> Tensor:
    """Euclidean norm [] of ``(end - start) / scale`` over all parameters.

    Args:
        ends: End points, one tensor per parameter; this process's shard where it is sharded.
        starts: Starting points, in the same form.
        scales: Units, in the same form; None: 1.
        of: The parameters; needed where some may be sharded.
    """
    ends, starts = ([_real(t) for t in tensors] for tensors in (ends, starts))
    dtype, sharded = _accumulation_dtype(ends), any(map(is_sharded, of))
    norms: list[list[Tensor]] = [[] for _ in ends]
    for owners, rows in _groups(ends, starts, *([scales] if scales else []), together=not sharded):
        there, here, *units = ([t if t.dtype == dtype else t.to(dtype) for t in row] for row in rows)
        differences = foreach.sub(there, here)
        for unit in units:
            differences = foreach.div(differences, unit)
        for owner, part in zip(owners, foreach.norm(differences), strict=True):
            norms[owner].append(part.to(ends[0].device))
    if not sharded:
        parts = [n for parts in norms for n in parts]
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())
    none = torch.zeros((), dtype=dtype, device=ends[0].device) if ends else torch.zeros(())
    return norm_of_parts([torch.linalg.vector_norm(torch.stack(parts or [none])) for parts in norms], of)


def _groups(
    ends: Sequence[Tensor], *others: Sequence[Any], together: bool
) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Group tensors, and companions of each, into chunks; a tensor larger than a chunk is split.

    Args:
        ends: The tensors.
        *others: Companions of each tensor; broadcast against it.
        together: Whether small tensors are concatenated, and yielded under the index of the first.

    Yields:
        The indices of the tensors, and the pieces of each argument.
    """
    columns = [
        ends,
        *([t if t.shape == e.shape else t.expand_as(e) for t, e in zip(o, ends, strict=True)] for o in others),
    ]
    small: dict[torch.device, list[int]] = {}
    whole: list[int] = []
    size = 0
    for number, end in enumerate(ends):
        length, most = end.numel(), _CHUNK_ON_CPU if end.device.type == "cpu" else _CHUNK
        if together and 0 < length <= _SMALL:
            small.setdefault(end.device, []).append(number)
            continue
        if whole and (size + length > most or end.device != ends[whole[0]].device):
            yield whole, [[column[i] for i in whole] for column in columns]
            whole, size = [], 0
        if length > most:
            for pieces in zip(*(column[number].flatten().split(most) for column in columns), strict=True):
                yield [number], [[piece] for piece in pieces]
        elif length:
            whole.append(number)
            size += length
    if whole:
        yield whole, [[column[i] for i in whole] for column in columns]
    for which in small.values():
        yield [which[0]], [[torch.cat([column[i].flatten() for i in which])] for column in columns]


def length_to(radius: float, norm: Tensor | Length) -> float:
    """The factor that scales a vector of this norm to this radius; 0 where the norm is 0, inf or NaN.

    No small constant is added to the norm, so any positive scale of the loss cancels exactly.
    """
    value = norm.value if isinstance(norm, Length) else norm.item()
    return radius / value if value > 0 else 0.0  # radius / inf is 0, and NaN is not above 0


@torch.no_grad()
def add(params: Sequence[Tensor], vector: Vector, factor: float) -> None:
    """Add ``factor * vector`` to the parameters in place, with a single rounding."""
    pairs = [(param, step) for param, step in zip(params, vector, strict=True) if step is not None]
    groups: list[list[tuple[Tensor, Tensor]]] = []
    size = 0
    for pair in pairs:
        size += pair[1].numel()
        if not groups or size > _CHUNK:
            groups.append([])
            size = pair[1].numel()
        groups[-1].append(pair)
    for group in groups:  # steps in half precision are upcast: all at once they would take twice the model's size
        foreach.add_([param for param, _ in group], [wide(step) for _, step in group], alpha=factor)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    return x.float() if x.dtype in HALF_DTYPES else x


def _real(x: Tensor) -> Tensor:
    """A complex tensor as two real ones."""
    return torch.view_as_real(x) if x.is_complex() else x


def _accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
