"""Norms, losses and curvatures of single examples, and eigenvalues of the Hessian, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.example_geometry import ExampleGeometry
from deltasam.diagnostics.hessian import HessianSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 30
_INTERVAL = 1.96


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


def plot_spectrum(results: HessianSpectrum | Mapping[str, HessianSpectrum], ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues of the Hessian; the legend has the trace with its 95 % interval.

    Args:
        results: One, or those of several models by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "model")
    for number, (name, result) in enumerate(named.items()):
        ranks = [rank + 0.8 * (number - (len(named) - 1) / 2) / len(named) for rank in _ranks(result)]
        trace = f"trace {result.trace:.3g} ± {_INTERVAL * result.trace_standard_error:.2g}"
        ax.bar(ranks, result.eigenvalues, width=0.8 / len(named), label=f"{name}: {trace}")
    ax.axhline(0, color="gray", linewidth=1)
    ax.set_xticks(_ranks(max(named.values(), key=lambda result: len(result.eigenvalues))))
    ax.set(xlabel="eigenvalue, from the largest", ylabel="curvature (loss per squared distance)")
    ax.legend()
    return ax


def _ranks(result: HessianSpectrum) -> list[int]:
    return list(range(1, len(result.eigenvalues) + 1))
