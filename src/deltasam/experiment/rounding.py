"""Numbers as text, with the digits their uncertainty leaves meaningful."""

from __future__ import annotations

import math

from deltasam.experiment.paired import Estimate

MISSING = "–"

_MOST_DECIMALS = 4


def decimals(size: float, significant: int) -> int:
    """Decimal places that show so many significant digits of a size, 4 at most."""
    if size == 0 or not math.isfinite(size):
        return 3
    return min(_MOST_DECIMALS, max(0, significant - 1 - math.floor(math.log10(abs(size)))))


def plain(value: float | None, significant: int = 3) -> str:
    """So many significant digits: ``0.912``, ``0.0231``, ``15.3``."""
    return MISSING if value is None else f"{value:.{decimals(value, significant)}f}"


def brief(value: float | None) -> str:
    """Three significant digits, with a power of ten where a number is very large or small: ``1.23e-05``."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3g}"


def mean_margin(estimate: Estimate | None) -> str:
    """Mean and half-width of the interval: ``0.912 ± 0.014``; the mean alone where there is no interval."""
    if estimate is None or estimate.margin is None:
        return plain(estimate.mean if estimate else None)
    places = decimals(estimate.margin, 2)
    return f"{estimate.mean:.{places}f} ± {estimate.margin:.{places}f}"


def signed_interval(estimate: Estimate) -> tuple[str, str]:
    """A difference and its interval: ``+0.012`` and ``[-0.003, 0.027]``, the latter empty if unknown."""
    if estimate.margin is None:
        places = decimals(estimate.mean, 2)
        return f"{estimate.mean:+.{places}f}", ""
    places = decimals(estimate.margin, 2)
    return f"{estimate.mean:+.{places}f}", f"[{estimate.low:.{places}f}, {estimate.high:.{places}f}]"


def p_value(p: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def ratio(value: float | None) -> str:
    """A factor: ``1.98x``."""
    return MISSING if value is None else f"{value:.2f}x"


def gibibytes(mib: float | None) -> str:
    """Mebibytes as gibibytes: ``0.88``, ``12.4``."""
    return plain(None if mib is None else mib / 1024, significant=2 if (mib or 0) < 1024 else 3)
