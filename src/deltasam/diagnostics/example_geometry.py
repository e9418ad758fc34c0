"""What the loss looks like from every single example: its height, its slope, and its curvature along the slope."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltasam.core.closure import example_losses_of
from deltasam.core.passes import Closure
from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.batches import Batches, restoring_state
from deltasam.diagnostics.example_rises import refuse_meeting_losses
from deltasam.diagnostics.hessian import twice_differentiable
from deltasam.per_example.engine import Engine
from deltasam.per_example.perturbed_forward import Perturbed
from deltasam.per_example.recorder import NotCoveredError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ExampleGeometry:
    """One entry per example, in the order of the batches and of their rows.

    Attributes:
        losses: ``L_i(w)``.
        norms: ``|g_i|``, the Euclidean norm of the gradient over all trainable weights.
        curvatures: ``g_i^T H_i g_i / |g_i|²``, H_i the Hessian of L_i: the second derivative along the gradient, per
            unit of distance in weight space; None where there is no gradient.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    curvatures: tuple[float | None, ...]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        norms = sorted(self.norms, reverse=True)
        tenth = max(1, len(norms) // 10)
        share = sum(norms[:tenth]) / sum(norms) if sum(norms) else 0.0
        curvatures = [c for c in self.curvatures if c is not None]
        bent = f"{statistics.median(curvatures):.3g}" if curvatures else "undefined"
        return (
            f"Of {len(norms)} examples the {tenth} with the largest gradients have {share:.0%} of the sum of all norms "
            f"(median {statistics.median(norms):.3g}); the median curvature along an example's own gradient is "
            f"{bent}. A large norm means that the example would change the weights most, be it hard, rare or wrongly "
            f"labelled: the number does not tell which. All are first and second derivatives at one point, in units "
            f"that a rescaling of layers changes."
        )


def example_geometry(model: nn.Module, closures: Sequence[Closure]) -> ExampleGeometry:
    """Measure loss, gradient norm and curvature along its own gradient of every example.

    Exact: the per-example engine gives every example a perturbation ``t_i g_i / |g_i|`` of its own in one batched pass,
    and the loss is differentiated twice by t. Attention runs without fused kernels, which have no second derivative.
    Cost: about five passes per batch, and the memory of a graph of the backward.

    The model stays in the mode in which it is: evaluation mode, unless dropout is meant; then a batch sees the same
    masks in all passes. Weights, buffers, gradients and random state are afterwards what they were, bit for bit, also
    after an exception.

    Args:
        model: With the weights to measure at.
        closures: One per batch; each runs one forward and returns one loss per example [n] (``deltasam.core.closure``).

    Raises:
        NotCoveredError: The engine does not cover the model; names the parameters.
        RuntimeError: Gradients are switched off, or a function of the model has no second derivative.
        ValueError: There is no closure, a loss is not finite or not one per example, or it depends on other examples.
    """
    with restoring_state(model), twice_differentiable():
        batches = Batches("example_geometry", model, closures)
        engine = Engine(model)
        parts = [_of_batch(batches, i, engine) for i in range(len(batches))]
        norms, curvatures = (torch.cat(column).tolist() for column in zip(*parts, strict=True))
        return ExampleGeometry(
            tuple(torch.cat(batches.losses).tolist()),
            tuple(norms),
            tuple(c if norm > 0 else None for c, norm in zip(curvatures, norms, strict=True)),
        )


def _of_batch(batches: Batches, number: int, engine: Engine) -> tuple[Tensor, Tensor]:
    """Norms and curvatures of a batch [n]."""
    passes, owner = batches.passes(number), batches.owner
    output, record = engine.first(passes)
    losses = example_losses_of(output, owner)
    try:
        gradients = engine.gradients(passes, record, losses, 1)
    except NotCoveredError as reason:
        raise NotCoveredError(f"{owner}: {reason}\nWays out: freeze these parameters") from None
    refuse_meeting_losses(owner, engine)
    norms = gradients.norms()
    gradients.scale(torch.where(norms > 0, 1 / norms, 0.0))
    way = torch.zeros_like(norms, requires_grad=True)
    gradients.times(way)
    perturbed = Perturbed(record, gradients)
    with perturbed:
        again = example_losses_of(batches.passes(number).first(), owner)
        slopes = _derivative(again, way, create_graph=True)
        curvatures = _derivative(slopes, way) if slopes.requires_grad else torch.zeros_like(way)  # a linear loss
    perturbed.check_rows()
    return norms.double(), curvatures.double()


def _derivative(values: Tensor, way: Tensor, *, create_graph: bool = False) -> Tensor:
    """Of each value [n] by its own number [n]; 0 where it does not depend on it."""
    (found,) = torch.autograd.grad(values.sum(), way, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(values) if found is None else found


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
