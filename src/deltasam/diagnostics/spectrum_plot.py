"""Eigenvalues of the Hessian as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.hessian import HessianSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spectrum(results: HessianSpectrum | Mapping[str, HessianSpectrum], ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues of the Hessian; the legend has the trace with its standard error.

    Args:
        results: One, or those of several models by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "model")
    for number, (name, result) in enumerate(named.items()):
        ranks = [rank + 0.8 * (number - (len(named) - 1) / 2) / len(named) for rank in _ranks(result)]
        trace = f"trace {result.trace:.3g} ± {result.trace_standard_error:.2g} (standard error)"
        ax.bar(ranks, result.eigenvalues, width=0.8 / len(named), label=f"{name}: {trace}")
    ax.axhline(0, color="gray", linewidth=1)
    ax.set_xticks(_ranks(max(named.values(), key=lambda result: len(result.eigenvalues))))
    ax.set(xlabel="eigenvalue, from the largest", ylabel="curvature (loss per squared distance)")
    ax.legend()
    return ax


def _ranks(result: HessianSpectrum) -> list[int]:
    return list(range(1, len(result.eigenvalues) + 1))
