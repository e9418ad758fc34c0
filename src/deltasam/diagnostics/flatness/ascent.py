"""The highest loss that gradient ascent finds within a radius, for one group of examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltasam.core import vectors
from deltasam.core.restore import WeightStore, moved
from deltasam.core.vectors import Vector
from deltasam.diagnostics.batches import Batches, Piece


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
