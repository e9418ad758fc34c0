"""How near one gradient is to another, as numbers: on one batch, and over several."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Vectors are widened this many elements at a time, so that no float64 copy of a whole model is made.
_CHUNK = 1 << 18
# A difference this many rounding errors long, in units of (machine epsilon * what is subtracted), is no signal.
_ROUNDINGS = 16.0


@dataclass(frozen=True)
class Closeness:
    """One method on one batch, beside exact per-instance SAM with the same dropout masks.

    g is the method's gradient, x the exact one, e the one of plain training; ``x - e`` is the sharpness term. A
    number is NaN where it is not finite, or what it is divided by is zero or no more than rounding.

    Attributes:
        error: ``|g - x| / |x - e|``. 0 is exact, 1 as far off as plain training; it may be more.
        cosine: Of ``g - e`` with ``x - e``. 1 points the right way at any length; NaN for plain training.
        gradient_error: ``|g - x| / |x|``.
        gradient_cosine: Of ``g`` with ``x``.
        loss_share: ``sum_i L_i(w + d) - L_i(w)`` over ``sum_i L_i(w + d_i) - L_i(w)``, d the method's perturbation
            and d_i the exact one of each example: the rise of the loss that the method finds. 1 is all of it; a
            method that reports no ``perturbed_loss`` perturbs nothing, 0.
        distance: Euclidean distance of the weights from w in the method's last pass, over the exact radius. NaN for
            a method that moves no weight: plain training, and per-instance SAM in two batched passes.
    """

    error: float
    cosine: float
    gradient_error: float
    gradient_cosine: float
    loss_share: float
    distance: float


@dataclass(frozen=True)
class Fidelity:
    """One method over all batches.

    Attributes:
        method: Its full spec, ``sam:rho=0.02``.
        batches: One entry per batch.
        cost: Seconds of ``backward`` over SAM's on the same batch; the median over the batches. Rough for few.
        exact_rho: Radius of the exact perturbations that it is compared with; NaN where it is not known.
    """

    method: str
    batches: tuple[Closeness, ...]
    cost: float
    exact_rho: float = math.nan

    @property
    def mean(self) -> Closeness:
        """Of each number over the batches where it is defined; NaN where there is none."""
        return _summary(self.batches, statistics.fmean, least=1)

    @property
    def spread(self) -> Closeness:
        """Standard deviation of each number over the batches where it is defined; NaN for fewer than two."""
        return _summary(self.batches, statistics.stdev, least=2)


def compare(
    method: Sequence[Tensor], exact: Sequence[Tensor], plain: Sequence[Tensor], *, epsilon: float
) -> dict[str, float]:
    """The part of ``Closeness`` that follows from three gradients, one tensor per parameter each.

    Args:
        method: The method's.
        exact: The exact one.
        plain: That of plain training.
        epsilon: Relative rounding error of these gradients.
    """
    to_exact, added, sharpness, own, whole, cosine, gradient_cosine = _lengths(method, exact, plain)
    floor = rounding(whole, epsilon)
    return {
        "error": ratio(to_exact, sharpness, floor),
        "cosine": cosine if min(added, sharpness) > floor else math.nan,
        "gradient_error": ratio(to_exact, whole),
        "gradient_cosine": gradient_cosine if min(own, whole) > 0 else math.nan,
    }


def rounding(size: float, epsilon: float) -> float:
    """The length up to which a difference of two things of this size is taken for rounding."""
    return _ROUNDINGS * epsilon * abs(size)


def ratio(numerator: float, denominator: float, floor: float = 0.0) -> float:
    """Their quotient; NaN unless both are finite and the denominator is farther from 0 than the floor."""
    defined = math.isfinite(numerator) and floor < abs(denominator) < math.inf
    return numerator / denominator if defined else math.nan


def _lengths(g: Sequence[Tensor], x: Sequence[Tensor], e: Sequence[Tensor]) -> list[float]:
    """Norms of g-x, g-e, x-e, g and x, and the cosines of g-e with x-e and of g with x."""
    gram = torch.zeros(5, 5, dtype=torch.float64)
    for tensors in zip(g, x, e, strict=True):
        for pieces in zip(*(t.flatten().split(_CHUNK) for t in tensors), strict=True):
            a, b, c = (piece.cpu().double() for piece in pieces)  # the CPU: not every device has float64
            vectors = torch.stack([a - b, a - c, b - c, a, b])  # subtracted first: nothing cancels in the sums
            gram += vectors @ vectors.T
    norms = gram.diagonal().sqrt()
    cosines = gram / torch.outer(norms, norms)
    return [*norms.tolist(), float(cosines[1, 2]), float(cosines[3, 4])]


def _summary(batches: Sequence[Closeness], statistic: Callable[[list[float]], float], least: int) -> Closeness:
    rows = [dataclasses.asdict(b) for b in batches]
    columns = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in rows[0]}
    return Closeness(**{k: statistic(values) if len(values) >= least else math.nan for k, values in columns.items()})
