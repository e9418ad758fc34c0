"""Numbers as text, with the digits their uncertainty leaves meaningful, and the words and marks for verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltasam.lab.compare.statistics.paired import Difference, Estimate

MISSING = "–"

MARKS = {"better": "▲", "worse": "▼", "diverged": "✕"}
"""What stands next to a number; within noise nothing does, so that nothing looks like a finding."""

WORDS = {
    "better": "better",
    "worse": "worse",
    "noise": "within noise",
    "unknown": "not judged",
    "diverged": "diverged",
    "baseline": "baseline",
    "absent": "not run",
    "waiting": "waiting",
    "unfinished": "unfinished",
}

_MOST_DECIMALS = 4


def decimals(size: float, significant: int) -> int:
    """Decimal places that show so many significant digits of a size, 4 at most."""
    if size == 0 or not math.isfinite(size):
        return 3
    return min(_MOST_DECIMALS, max(0, significant - 1 - math.floor(math.log10(abs(size)))))


def _places(mean: float, margin: float, significant: int) -> int:
    """Decimal places for a mean and the half-width of its interval.

    Two digits of the half-width; but where few seeds make it wide, the mean keeps so many digits of its own, as far
    as three decimals: means that lost them would not fit their difference.
    """
    return max(decimals(margin, 2), min(3, decimals(mean, significant)))


def format_number(value: float | None, significant: int = 3) -> str:
    """So many significant digits: ``0.912``, ``0.0231``, ``15.3``."""
    return MISSING if value is None else _fixed(value, decimals(value, significant))


def _fixed(value: float, places: int, sign: str = "") -> str:
    """With so many decimal places, and never ``-0.00``."""
    rounded = round(value, places) + 0.0  # adding it makes the negative zero a positive one
    return f"{rounded:{sign}.{places}f}"


def brief(value: float | None) -> str:
    """Three significant digits, with a power of ten where a number is very large or small: ``1.23e-05``."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3g}"


def mean_margin(estimate: Estimate | None) -> str:
    """Mean and half-width of the interval: ``0.912 ± 0.014``; the mean alone where there is no interval."""
    if estimate is None or estimate.margin is None:
        return format_number(estimate.mean if estimate else None)
    places = _places(estimate.mean, estimate.margin, significant=3)
    return f"{_fixed(estimate.mean, places)} ± {_fixed(estimate.margin, places)}"


def signed_interval(estimate: Estimate) -> tuple[str, str]:
    """A difference and its interval: ``+0.012`` and ``[-0.003, 0.027]``, the latter empty if unknown."""
    if estimate.margin is None:
        return _fixed(estimate.mean, decimals(estimate.mean, 2), "+"), ""
    places = _places(estimate.mean, estimate.margin, significant=2)
    low, high = (_fixed(estimate.mean + side * estimate.margin, places) for side in (-1, 1))
    return _fixed(estimate.mean, places, "+"), f"[{low}, {high}]"


def difference_text(difference: Difference | None) -> str:
    """The mean difference and its interval in one."""
    return " ".join(filter(None, signed_interval(difference.estimate))) if difference else MISSING


def p_value(p: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def ratio(value: float | None) -> str:
    """A factor: ``1.98x``."""
    return MISSING if value is None else f"{value:.2f}x"


def gibibytes(mib: float | None) -> str:
    """Mebibytes as gibibytes: ``0.88``, ``12.4``."""
    return format_number(None if mib is None else mib / 1024, significant=2 if (mib or 0) < 1024 else 3)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: ``sam, asam and r_drop``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
