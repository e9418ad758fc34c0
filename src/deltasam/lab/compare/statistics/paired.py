"""Means, paired differences and their uncertainty over seeds."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

LEVEL = 0.05
"""Two-sided error rate: intervals cover 95 %, a difference is claimed at a corrected p of at most this."""

_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % Student t interval.

    ``low`` and ``high`` are None where the spread is unknown: one seed, or values without any spread.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def margin(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Difference:
    """Method minus baseline over the seeds both have; positive is better for the method.

    ``p_value`` is the two-sided paired t-test's, ``holm`` the same after Holm's correction over all methods
    compared. Both are None where the spread is unknown.
    """

    by_seed: dict[int, float]
    estimate: Estimate
    p_value: float | None
    holm: float | None = None
    seeds_needed: int | None = None
    """Roughly how many seeds would show a difference this large, were it real; None where unknown or huge."""

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``noise``, or ``unknown`` (nothing to judge noise by)."""
        if self.holm is None:
            return "unknown"
        if self.holm > LEVEL:
            return "noise"
        return "better" if self.estimate.mean > 0 else "worse"


def estimate(values: Sequence[float], resolution: float = 0.0) -> Estimate:
    """Mean of the values with its 95 % t interval.

    Values that all lie within ``resolution`` of each other have no interval: a metric that moves in steps
    (accuracy on a few hundred examples) repeats itself by chance, and a width of zero would claim certainty.
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) <= resolution:
        return Estimate(mean, None, None, len(values))
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    margin = float(special.stdtrit(len(values) - 1, 1 - LEVEL / 2) * error)
    return Estimate(mean, mean - margin, mean + margin, len(values))


def paired_difference(method: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Paired difference of two methods' finite values by seed; None without a seed in common."""
    pairs = {seed: (method[seed], baseline[seed]) for seed in sorted(method.keys() & baseline.keys())}
    if not pairs:
        return None
    by_seed = {seed: value - reference for seed, (value, reference) in pairs.items()}
    # Metrics often arrive as 32-bit floats: equal differences then differ in the seventh digit.
    resolution = 1e-6 * max(abs(x) for pair in pairs.values() for x in pair)
    difference = estimate(list(by_seed.values()), resolution)
    return Difference(by_seed, difference, _p_value(difference, resolution))


def _p_value(difference: Estimate, resolution: float) -> float | None:
    if difference.margin is None:
        return 1.0 if difference.count > 1 and abs(difference.mean) <= resolution else None
    freedom = difference.count - 1
    error = difference.margin / special.stdtrit(freedom, 1 - LEVEL / 2)
    return float(2 * special.stdtr(freedom, -abs(difference.mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's step-down correction, in the given order."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(p) for p in corrected]


def seeds_needed(effect: float, level: float = LEVEL, power: float = 0.8) -> int | None:
    """Seeds at which a two-sided paired t-test finds a true effect with the given power.

    Args:
        effect: Mean of the paired differences over their standard deviation.
        level: Error rate of the test.
        power: Probability of finding the effect.

    Returns:
        The smallest such number, or None where it exceeds 1000.
    """

    def reached(count: int) -> bool:
        critical = special.stdtrit(count - 1, 1 - level / 2)
        # The chance to reject on the wrong side is left out: at this power it is below a millionth.
        return bool(special.nctdtr(count - 1, abs(effect) * math.sqrt(count), critical) <= 1 - power)

    counts = range(2, _MOST_SEEDS + 1)
    index = bisect.bisect_left(counts, True, key=reached)
    return counts[index] if index < len(counts) else None


def effect_size(difference: Difference) -> float | None:
    """Mean over standard deviation of the paired differences; None where the spread is unknown."""
    if difference.estimate.margin is None:
        return None
    values = list(difference.by_seed.values())
    return abs(difference.estimate.mean) / float(np.std(values, ddof=1))


def finite(values: dict[int, float]) -> dict[int, float]:
    """The entries that are numbers."""
    return {seed: value for seed, value in values.items() if math.isfinite(value)}
