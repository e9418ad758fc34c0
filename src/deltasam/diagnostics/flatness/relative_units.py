"""The size of every weight, as the unit in which adaptive measures count."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def relative_units(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """``|w|``, element by element, one tensor per parameter; a weight of 0 does not move."""
    return [p.detach().abs() for p in params]
