"""What a model is worth after its weights were changed: the numbers, their words and their picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltasam.diagnostics.axes import axes_or_new, by_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SAYS = {
    "rounding": (
        "Every row of the weight matrices was rounded to the nearest of equally spaced values, without any data. That "
        "is the crudest way: methods that look at data lose less at 4 bits and below. At 8 bits a model should lose "
        "nothing."
    ),
    "pruning": (
        "The smallest weights were set to 0 in one go. Nothing was trained afterwards, which would win back much, "
        "and nothing is faster or smaller yet."
    ),
    "noise": (
        "Gaussian noise was added to the weight matrices. Methods that train for flat minima train for this, so it is "
        "a check that they do what they should, and no evidence that the model is better at anything else."
    ),
}


@dataclass(frozen=True)
class ChangedWeights:
    """The evaluation at one amount of a change.

    Attributes:
        name: In words: ``4 bits``, ``30 % pruned``, ``noise 0.1``.
        amount: Bits per weight, the share of weights that are 0, or the noise's size over that of the weights.
        metrics: What ``evaluate`` gave; means over the draws, where noise was drawn.
        errors: The standard error of each mean over the draws; empty where nothing was drawn.
    """

    name: str
    amount: float
    metrics: dict[str, float]
    errors: dict[str, float]


@dataclass(frozen=True)
class AfterChange:
    """The evaluation of a model as it is, and with its weights changed by several amounts.

    Attributes:
        change: ``rounding``, ``pruning`` or ``noise``.
        before: What ``evaluate`` gave with the weights as they are.
        levels: What it gave with changed weights, in the order of the amounts that were asked for.
    """

    change: str
    before: dict[str, float]
    levels: tuple[ChangedWeights, ...]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        numbers = "; ".join(self._told(metric) for metric in self.before)
        return (
            f"After {self.change}: {numbers}. {_SAYS[self.change]} All of it is measured on the rows given, no others."
        )

    def _told(self, metric: str) -> str:
        found = [f"{level.metrics[metric]:.3g} ({level.name})" for level in self.levels]
        return f"{metric} {self.before[metric]:.3g} as trained, {', '.join(found)}"


def plot_after(
    results: AfterChange | Mapping[str, AfterChange], metric: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a metric over the amounts of a change, with the model as it is first; bars are standard errors.

    Args:
        results: One, or several by name; of the same change and amounts.
        metric: Which; the first that ``evaluate`` gave unless told.
        ax: Where; a new figure unless given.

    Raises:
        ValueError: The results are of different changes or amounts.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "model")
    first = next(iter(named.values()))
    names = [level.name for level in first.levels]
    if any([level.name for level in result.levels] != names for result in named.values()):
        raise ValueError("plot_after: the results are of different changes or amounts; draw each by itself")
    metric = metric or next(iter(first.before))
    for name, result in named.items():
        values = [result.before[metric], *(level.metrics[metric] for level in result.levels)]
        errors = [0.0, *(level.errors.get(metric, 0.0) for level in result.levels)]
        ax.errorbar(range(len(values)), values, yerr=errors if any(errors) else None, marker="o", capsize=3, label=name)
    ax.set_xticks(range(1 + len(names)), ["as trained", *names])
    ax.set(xlabel=first.change, ylabel=metric)
    if len(named) > 1:
        ax.legend()
    return ax
