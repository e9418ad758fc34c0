"""How methods rank over tasks: Friedman's test, and Nemenyi's critical difference where it finds something.

The comparison of several classifiers over several data sets after Demsar (JMLR 7, 2006). Only the order of the
means within a task counts, so tasks with different metrics can be taken together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from deltasam.lab.compare.statistics.paired import LEVEL

RELIABLE_ROWS = 10
"""Up to so many rows the distribution that the test assumes is a rough approximation."""


@dataclass(frozen=True)
class Ranking:
    """Ranks of the methods within each row, 1 for the largest mean."""

    ranks: Mapping[str, Mapping[str, float]]
    """By row and method."""
    p_value: float | None
    """Friedman's; None where it cannot be tested: fewer than three methods or two rows, or runs are missing."""
    critical_difference: float | None
    """Mean ranks further apart than this differ; None unless Friedman's test finds a difference at all."""

    @property
    def mean(self) -> dict[str, float]:
        """The mean rank of each method over the rows; empty below two rows."""
        rows = list(self.ranks.values())
        return {m: float(np.mean([row[m] for row in rows])) for m in rows[0]} if len(rows) > 1 else {}

    def gap(self, method: str, other: str) -> float:
        """How far the method ranks above the other where that is more than chance explains, else 0."""
        gap = self.mean[other] - self.mean[method] if self.critical_difference is not None else 0.0
        return gap if abs(gap) >= (self.critical_difference or 0.0) else 0.0


def rank(means: Mapping[str, Mapping[str, float]], methods: Sequence[str], *, test: bool) -> Ranking:
    """Rank the methods within each row and test whether they differ over the rows.

    Args:
        means: By row and method, larger is better; a method that diverged has a mean that is not finite and comes last.
        methods: Which are ranked.
        test: Whether to test; a table that is still running is only ranked.
    """
    ranks = {row: dict(zip(methods, _ranks([of[m] for m in methods]), strict=True)) for row, of in means.items()}
    if not test or len(methods) < 3 or len(ranks) < 2:
        return Ranking(ranks, None, None)
    p = _friedman(np.array([list(row.values()) for row in ranks.values()]))
    return Ranking(ranks, p, critical_difference(len(methods), len(ranks)) if p <= LEVEL else None)


def _ranks(means: Sequence[float]) -> list[float]:
    """Average ranks with ties; means that differ only in their last bits are tied."""
    sound = [float(f"{x:.6g}") if math.isfinite(x) else -math.inf for x in means]
    return [float(r) for r in stats.rankdata([-x for x in sound])]


def _friedman(ranks: np.ndarray) -> float:
    if np.ptp(ranks, axis=1).max() == 0:  # every row is one tie: scipy would divide by zero
        return 1.0
    return float(stats.friedmanchisquare(*ranks.T).pvalue)


def critical_difference(methods: int, rows: int) -> float:
    """How far apart two of so many methods' mean ranks over so many rows must be to differ (Nemenyi)."""
    q = float(stats.studentized_range.ppf(1 - LEVEL, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * rows))
