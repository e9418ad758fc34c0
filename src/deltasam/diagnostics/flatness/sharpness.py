"""Worst-case sharpness: how much the loss rises within a radius of the weights, for any m examples at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deltasam.core.checks import positive, whole
from deltasam.core.passes import Closure
from deltasam.core.restore import WeightStore
from deltasam.diagnostics.batches import Batches, epsilon_of, restoring_state, size
from deltasam.diagnostics.closeness import rounding
from deltasam.diagnostics.example_rises import ExampleRises
from deltasam.diagnostics.flatness.ascent import batches_of_whole_groups, groups_of, highest_rise, relative_units
from deltasam.per_example.recorder import NotCoveredError

CAUTION = (
    "Sharpness, in any of its forms, is no reliable sign of how well a model generalizes: it depends on how the model "
    "was trained, and for fine-tuned transformers the correlation can be absent or negative (Andriushchenko et al. "
    "2023, arXiv 2302.07011)."
)
RESCALING = (
    "Such a number changes with a rescaling of layers that leaves the function alone (Dinh et al. 2017, arXiv "
    "1703.04933): compare models of one architecture and one recipe. "
)


@dataclass(frozen=True)
class Sharpness:
    """``(1/n) sum over groups of |group| max_{|d| <= rho} [L_group(w + d) - L_group(w)]``, n examples in all.

    Attributes:
        rise: The number itself, in units of the loss.
        standard_error: Of it, over the groups as a sample of groups of other examples; None for a single group.
        loss: Mean loss at the weights as they are.
        rho: Radius.
        m: Examples that share a perturbation; None: all.
        adaptive: Whether the radius is in units of the size of each weight.
        steps: Of gradient ascent, for each group.
        examples: How many there are.
        group_rises: Mean rise of each group, in the order of the examples.
        group_sizes: Examples of each group.
    """

    rise: float
    standard_error: float | None
    loss: float
    rho: float
    m: int | None
    adaptive: bool
    steps: int
    examples: int
    group_rises: tuple[float, ...]
    group_sizes: tuple[int, ...]

    @property
    def reading(self) -> str:
        """What the number says, and what it does not."""
        whom = "all examples together" if self.m is None else "each example" if self.m == 1 else f"{self.m} at a time"
        units = " times the size of each weight" if self.adaptive else ""
        return (
            f"Within a radius of {self.rho:g}{units}, chosen against {whom}, the mean loss of {self.examples} examples "
            f"rises from {self.loss:.4g} by {self.rise:.4g}. The largest rise is approximated from below, by gradient "
            f"ascent of {self.steps} step{'s' if self.steps > 1 else ''}. {'' if self.adaptive else RESCALING}{CAUTION}"
        )


def sharpness(
    model: nn.Module,
    closures: Sequence[Closure],
    *,
    rho: float = 0.02,
    m: int | None = None,
    adaptive: bool = False,
    steps: int = 1,
) -> Sharpness:
    """Measure worst-case sharpness, ``mean over groups of max_{|d| <= rho} [L_group(w + d) - L_group(w)]``.

    A group is m consecutive examples, wherever they were cut into batches; the last may be smaller, and the mean counts
    examples. ``m=None``: one perturbation for all examples of all batches, its gradient accumulated over them. The
    maximum is approximated from below, as SAM does it, by one step ``d = rho g / |g|``; one step may go too far, so a
    negative rise is possible though the maximum is never below 0. More ``steps`` are projected normalized gradient
    ascent, and the best of them counts.

    ``adaptive`` measures d in units of the weights, ``|d / |w|| <= rho``, with the step ``d = rho w² g / ||w| g|``. It
    does not change when layers are rescaled and the function stays. This is the definition of ASAM without what it
    adds for training: there ``eta`` is added to every size and biases count as 1.

    Cost: one forward, and then, where groups are made of whole batches, a pass and a forward per step. Where a batch
    holds several groups, all of them whole, the per-example engine takes about two passes for them together, whatever
    m; adaptive, twice that, and memory for a gradient of all linear layers per group. With ``steps`` above 1, or where
    batches cut groups, these are taken one after the other, each with passes over whole batches: give batches of m.

    The model stays in the mode in which it is: evaluation mode, unless dropout is meant; then a batch sees the same
    masks in all passes. Weights, buffers, gradients and random state are afterwards what they were, bit for bit, also
    after an exception.

    Source: Foret et al. 2021, arXiv 2010.01412, equation 1 and section 4.1; Andriushchenko and Flammarion 2022, arXiv
    2206.06232 (m-sharpness); Kwon et al. 2021, arXiv 2102.11600, and Andriushchenko et al. 2023, arXiv 2302.07011
    (adaptive).

    Args:
        model: With the weights to measure at.
        closures: One per batch; each runs one forward and returns one loss per example [n] (``deltasam.core.closure``).
        rho: Radius, in the Euclidean norm over all trainable weights; adaptive, about ten times that.
        m: Examples that share a perturbation.
        adaptive: The radius is in units of the size of each weight.
        steps: Of gradient ascent.

    Raises:
        NotCoveredError: m is smaller than a batch, and the engine does not cover the model; names the parameters.
        RuntimeError: Gradients are switched off.
        ValueError: rho is not above 0, m or steps is no whole number of 1 or more, there is no closure, a loss is not
            finite or not one per example, or it depends on other examples and m is smaller than the batch.
    """
    rho = positive("sharpness", "rho", rho)
    m = None if m is None else whole("sharpness", "m", m)
    steps = whole("sharpness", "steps", steps)
    with restoring_state(model):
        batches = Batches("sharpness", model, closures)
        rises, sizes = _rises(batches, rho, m, adaptive, steps)
        rise, error = _mean(rises, sizes)
        warn_if_rounding("sharpness", "rho", rho, rise, batches.loss, epsilon_of(batches.params))
        return Sharpness(
            rise, error, batches.loss, rho, m, adaptive, steps, batches.examples, tuple(rises), tuple(sizes)
        )


def warn_if_rounding(owner: str, argument: str, value: float, rise: float, loss: float, epsilon: float) -> None:
    """Warn where the rounding of the loss could make a rise of this size.

    Args:
        owner: The measure.
        argument: What makes the rise larger.
        value: What it is.
        rise: Of the mean loss.
        loss: At the weights as they are.
        epsilon: Relative rounding error of the weights.
    """
    if abs(rise) <= rounding(loss, epsilon):
        warnings.warn(
            f"{owner}({argument}={value:g}): the loss of {loss:.3g} rises by {rise:.2g}, which rounding could make; "
            f"raise {argument}, or compute in a wider floating-point type",
            RuntimeWarning,
            stacklevel=3,
        )


def _rises(batches: Batches, rho: float, m: int | None, adaptive: bool, steps: int) -> tuple[list[float], list[int]]:
    """The mean rise and the number of examples of each group."""
    batch_sizes = [len(losses) for losses in batches.losses]
    groups = groups_of(batch_sizes, m)
    together = batches_of_whole_groups(batch_sizes, m) if steps == 1 else set()
    units = relative_units(batches.params) if adaptive else None
    of_examples, store = ExampleRises(batches, m or 1, rho, units), WeightStore()
    rises: list[float] = []
    for group in groups:
        number, rows = group[0]
        if number not in together:
            rises.append(highest_rise(batches, group, rho, steps, units, store))
        elif rows.start == 0:  # the first group of its batch stands for all of them
            rises += _together(of_examples, number, m)
    return rises, [size(group) for group in groups]


def _together(of_examples: ExampleRises, number: int, m: int | None) -> list[float]:
    try:
        return of_examples.of(number)
    except NotCoveredError as reason:
        raise NotCoveredError(
            f"sharpness(m={m}): {reason}\n"
            f"Ways out: freeze these parameters; give batches of {m} each, which works for any model, one after the "
            f"other; or let whole batches share a perturbation: m=None, or a multiple of the batch size"
        ) from None


def _mean(rises: list[float], sizes: list[int]) -> tuple[float, float | None]:
    """The mean over the examples, and its standard error over the groups."""
    n, k = sum(sizes), len(sizes)
    mean = math.fsum(rise * size for rise, size in zip(rises, sizes, strict=True)) / n
    if k < 2:
        return mean, None
    squares = math.fsum((size / n * (rise - mean)) ** 2 for rise, size in zip(rises, sizes, strict=True))
    return mean, math.sqrt(squares * k / (k - 1))
