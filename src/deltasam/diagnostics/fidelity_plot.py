"""How close methods come to one perturbation per example, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltasam.diagnostics.axes import axes_or_new
from deltasam.diagnostics.closeness import Fidelity
from deltasam.diagnostics.fidelity import spec_with_rho

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = {"error": ("o", 0), "cosine": ("s", 1), "loss_share": ("D", 1)}
"""Each number's marker, and its value for the exact gradient."""


def plot_fidelity(results: Sequence[Fidelity], ax: Axes | None = None) -> Axes:
    """Draw error, cosine and loss share of each method: means over the batches, with standard deviations as bars.

    Args:
        results: One per method. A number that is undefined for a method is left out.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    for i, (number, (marker, exact)) in enumerate(_SHOWN.items()):
        found = [(y, getattr(r.mean, number), getattr(r.spread, number)) for y, r in enumerate(results)]
        defined = [(y + (i - 1) * 0.2, mean, spread) for y, mean, spread in found if not math.isnan(mean)]
        y, means, spreads = ([point[k] for point in defined] for k in range(3))
        bars = [0.0 if math.isnan(spread) else spread for spread in spreads]
        ax.errorbar(means, y, xerr=bars, fmt=marker, capsize=3, label=f"{number.replace('_', ' ')} (exact: {exact})")
    for x in (0, 1):
        ax.axvline(x, linestyle=":", linewidth=1, color="gray")
    ax.set_yticks(range(len(results)), [spec_with_rho(r.method) for r in results])
    ax.invert_yaxis()
    ax.set(xlabel="mean over the batches, and standard deviation", ylabel="method")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    return ax
