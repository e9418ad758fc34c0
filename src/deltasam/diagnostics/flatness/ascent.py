"""The highest loss that gradient ascent finds within a radius, for one group of examples, and what groups there are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.restore import WeightStore, moved
from deltasam.core.vectors import Vector
from deltasam.diagnostics.batches import Batches, Piece


def groups_of(sizes: Sequence[int], m: int | None) -> list[list[Piece]]:
    """Cut the examples of all batches into groups of m consecutive ones; the last group may be smaller.

    Args:
        sizes: How many examples each batch has.
        m: Examples per group; None: all of them.
    """
    m = sum(sizes) if m is None else m
    groups: list[list[Piece]] = []
    room = 0
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                groups.append([])
                room = m
            stop = min(size, start + room)
            groups[-1].append((number, slice(start, stop)))
            room -= stop - start
            start = stop
    return groups


def batches_of_whole_groups(sizes: Sequence[int], m: int | None) -> set[int]:
    """The batches that hold several groups and no part of one."""
    found, begin = set(), 0
    for number, size in enumerate(sizes):
        if m is not None and m < size and begin % m == 0 and size % m == 0:
            found.add(number)
        begin += size
    return found


def highest_rise(
    batches: Batches, pieces: Sequence[Piece], rho: float, steps: int, units: Vector | None, store: WeightStore
) -> float:
    """``max_t L(w + d_t) - L(w)`` over the iterates of projected normalized gradient ascent on the ball |d| <= rho.

    The first step is SAM's, ``d_1 = rho g / |g|``. Step t goes on from there by ``rho / t`` along the gradient at
    ``w + d``, and back onto the ball where it has left it. The lengths do not depend on the number of steps, so more of
    them never find less. With units T all lengths are those of d / T, and the gradient is that with respect to it.

    Args:
        batches: Whose losses.
        pieces: The group.
        rho: Radius.
        steps: How many, 1 or more.
        units: T, one tensor per parameter; None: 1.
        store: Memory for the copy of the weights.
    """
    place: list[Tensor | None] = [None] * len(batches.params)
    best = -float("inf")
    for step in range(1, steps + 1):
        with moved(batches.params, in_units(place, units), 1.0, store):
            ascent = in_units(batches.gradient(pieces), units)
        length = vectors.length_to(rho / step, vectors.norm(ascent))
        if length:  # 0 where there is no gradient to follow, or none that is finite
            place = _within(vectors.plus(place, times(ascent, length)), rho)
        del ascent
        with moved(batches.params, in_units(place, units), 1.0, store):
            best = max(best, batches.rise(pieces))
    return best


def relative_units(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """``|w|``, element by element, one tensor per parameter; a weight of 0 does not move."""
    return [p.detach().abs() for p in params]


def in_units(vector: Vector, units: Vector | None) -> list[Tensor | None]:
    """The vector times the units, element by element."""
    if units is None:
        return list(vector)
    return [None if v is None or u is None else v * u for v, u in zip(vector, units, strict=True)]


def times(vector: Vector, factor: float) -> list[Tensor | None]:
    """The vector times a number; half precision is widened first."""
    return vectors.times([None if v is None else vectors.wide(v) for v in vector], factor)


def _within(vector: list[Tensor | None], radius: float) -> list[Tensor | None]:
    length = float(vectors.norm(vector))
    return times(vector, radius / length) if length > radius else vector
