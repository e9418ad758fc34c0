"""Main numbers as text."""

from __future__ import annotations

import math

from deltasam.lab.compare.statistics.formatting import brief
from deltasam.lab.diagnose.diagnostic import Number


def number_text(number: Number) -> str:
    """The value, and its error if it has one: ``0.123 ± 0.02``."""
    if number.error is None or not math.isfinite(number.error) or not math.isfinite(number.value):
        return brief(number.value)
    return f"{brief(number.value)} ± {number.error:.2g}"
