"""Sharpness as pictures: several models side by side, and over the number of examples that share a perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.flatness.average import AverageSharpness
from deltasam.diagnostics.flatness.sharpness import Sharpness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RISE = "rise of the mean loss (bars: ± one standard error)"


def plot_sharpness(
    results: Sharpness | AverageSharpness | Mapping[str, Sharpness] | Mapping[str, AverageSharpness],
    ax: Axes | None = None,
) -> Axes:
    """Draw a bar for each model's rise of the loss, and on it one standard error on each side where there is one.

    Args:
        results: One, or those of several models by name, measured alike.
        ax: Where; a new figure unless given.

    Raises:
        ValueError: There is none, or they were not measured alike: at another radius, say.
    """
    ax = axes_or_new(ax)
    named: Mapping[str, Sharpness | AverageSharpness] = by_name(results, "model")
    kind = _common([what_was_measured(result) for result in named.values()])
    for place, result in enumerate(named.values()):
        ax.bar(place, result.rise, width=0.6, color=f"C{place}")
        if result.standard_error is not None:
            ax.errorbar(place, result.rise, yerr=result.standard_error, color="black", capsize=4)
    ax.axhline(0, color="gray", linewidth=1)
    ax.set_xticks(range(len(named)), list(named))
    ax.set(ylabel=_RISE, title=kind)
    return ax


def plot_m_sharpness(results: Sequence[Sharpness] | Mapping[str, Sequence[Sharpness]], ax: Axes | None = None) -> Axes:
    """Draw sharpness over m, the examples that share a perturbation, with bars of one standard error on each side.

    Args:
        results: For several m, of one model or of several by name; ``m=None`` stands at all examples.
        ax: Where; a new figure unless given.

    Raises:
        ValueError: There is none, or they differ in more than m.
    """
    ax = axes_or_new(ax)
    curves = by_name(results, "model")
    kind = _common([_radius(result) for curve in curves.values() for result in curve])
    for name, curve in curves.items():
        ordered = sorted(curve, key=_shared)
        bars = [result.standard_error or 0.0 for result in ordered]
        x, y = [_shared(result) for result in ordered], [result.rise for result in ordered]
        ax.errorbar(x, y, yerr=bars, marker="o", capsize=3, label=name)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="m (examples that share a perturbation)", ylabel=_RISE, title=f"m-sharpness, {kind}")
    ax.legend()
    return ax


def what_was_measured(result: Sharpness | AverageSharpness) -> str:
    """The kind of sharpness and what it was measured at, for a title."""
    if isinstance(result, AverageSharpness):
        return f"average-case sharpness, {'adaptive, ' if result.adaptive else ''}sigma = {result.sigma:g}"
    return f"worst-case sharpness, {_radius(result)}, m = {'all' if result.m is None else result.m}"


def _radius(result: Sharpness) -> str:
    steps = f", {result.steps} steps" if result.steps > 1 else ""
    return f"{'adaptive, ' if result.adaptive else ''}rho = {result.rho:g}{steps}"


def _shared(result: Sharpness) -> int:
    return result.examples if result.m is None else min(result.m, result.examples)


def _common(kinds: Sequence[str]) -> str:
    if len(set(kinds)) != 1:
        raise ValueError(f"what is drawn together must be measured alike, but there are {sorted(set(kinds)) or 'none'}")
    return kinds[0]
