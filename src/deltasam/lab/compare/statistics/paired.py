"""Means, paired differences and their uncertainty over seeds."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

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

    ``p_value`` is the two-sided paired t-test's; None where the spread is unknown. ``holm`` is the same after Holm's
    correction over a family of so many differences; None where it is not judged, because runs are missing or diverged.
    """

    by_seed: dict[int, float]
    estimate: Estimate
    p_value: float | None
    holm: float | None = None
    family: int = 1

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``noise``, or ``unknown`` (nothing to judge noise by)."""
        if self.holm is None:
            return "unknown"
        if self.holm > LEVEL:
            return "noise"
        return "better" if self.estimate.mean > 0 else "worse"

    @property
    def seeds_needed(self) -> int | None:
        """Roughly how many seeds would show a difference this large, were it real; None where unknown or huge."""
        if self.holm is None or self.estimate.margin is None or self.estimate.mean == 0:
            return None
        deviation = float(np.std(list(self.by_seed.values()), ddof=1))
        return seeds_needed(self.estimate.mean / deviation, LEVEL / self.family)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of the values with its 95 % t interval.

    Equal values have no interval: a metric that moves in steps (accuracy on a few hundred examples) repeats itself by
    chance, and a width of zero would claim certainty.
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Estimate(mean, None, None, len(values))
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    margin = float(special.stdtrit(len(values) - 1, 1 - LEVEL / 2) * error)
    return Estimate(mean, mean - margin, mean + margin, len(values))


def paired_difference(method: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Paired difference of two methods by seed, with the paired t-test's interval and p-value.

    Args:
        method: A value for each seed; those that are not finite are left out, with their pair.
        baseline: Likewise.

    Returns:
        None without a seed in common.
    """
    ours, theirs = finite(method), finite(baseline)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    pairs = np.array([(ours[seed], theirs[seed]) for seed in seeds])
    differences = pairs[:, 0] - pairs[:, 1]
    by_seed, mean = dict(zip(seeds, differences.tolist(), strict=True)), float(differences.mean())
    # Metrics often arrive as 32-bit floats: equal differences then differ in the seventh digit.
    resolution = 1e-6 * float(np.abs(pairs).max())
    if len(seeds) < 2 or np.ptp(differences) <= resolution:
        p_value = 1.0 if len(seeds) > 1 and abs(mean) <= resolution else None
        return Difference(by_seed, Estimate(mean, None, None, len(seeds)), p_value)
    test = stats.ttest_rel(pairs[:, 0], pairs[:, 1])
    low, high = test.confidence_interval(1 - LEVEL)
    return Difference(by_seed, Estimate(mean, float(low), float(high), len(seeds)), float(test.pvalue))


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


def finite(values: Mapping[int, float]) -> dict[int, float]:
    """The entries that are numbers."""
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def mean_of(values: Mapping[int, float]) -> Estimate | None:
    """The mean of the finite values; None without any."""
    numbers = list(finite(values).values())
    return estimate(numbers) if numbers else None
