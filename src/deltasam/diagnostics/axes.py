"""What every plot of this package begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes that were given, else those of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots()[1]


def by_name(results: T | Mapping[str, T], name: str) -> Mapping[str, T]:
    """Several results as they are; a single one under a name."""
    return results if isinstance(results, Mapping) else {name: results}
