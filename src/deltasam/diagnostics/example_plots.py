"""Norms and losses of single examples as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.example_geometry import ExampleGeometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 30


def plot_norms(results: ExampleGeometry | Mapping[str, ExampleGeometry], ax: Axes | None = None) -> Axes:
    """Draw a histogram of the examples' gradient norms.

    Args:
        results: One, or those of several models by name, which share their bins.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "model")
    largest = max(max(result.norms) for result in named.values())
    for name, result in named.items():
        ax.hist(result.norms, bins=_BINS, range=(0, largest or 1.0), alpha=0.6, label=name)
    ax.set(xlabel="gradient norm of an example (loss per distance)", ylabel="examples")
    ax.legend()
    return ax


def plot_examples(results: ExampleGeometry | Mapping[str, ExampleGeometry], ax: Axes | None = None) -> Axes:
    """Draw each example's gradient norm over its loss.

    Args:
        results: One, or those of several models by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    for name, result in by_name(results, "model").items():
        ax.scatter(result.losses, result.norms, s=12, alpha=0.6, label=name)
    ax.set(xlabel="loss of an example", ylabel="its gradient norm (loss per distance)")
    ax.legend()
    return ax
