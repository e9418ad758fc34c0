"""delta-SAM: one perturbation per batch, reweighted towards what per-instance perturbations would have done."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.closure import example_losses_of, losses_of
from deltasam.core.passes import Passes
from deltasam.methods.bases.reweighted import ReweightedPerturbation, equal_unless_finite
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.perturbed_forward import perturbed_pass
from deltasam.per_example.recorder import NotCoveredError, Record

# A weight that is estimated counts as at most so many times the mean, which is then brought to 1 again.
LARGEST_WEIGHT = 4.0

# The slope of a loss along a Gaussian is the norm of its gradient times the size of a normal number z. So much the root
# of that size varies, in units of its squared mean: E|z| / (E|z|^(1/2))^2 - 1, by the normal distribution's moments.
NOISE_OF_ONE_SLOPE = math.sqrt(math.pi) / math.gamma(0.75) ** 2 - 1

# The least number of Gaussians whose spread says how much of an estimate is noise. Four come closer by 2 % at most.
DRAWS = 2

# Where every loss rises as its gradient says, to within this share, delta-SAM is SAM: curvature is too small to matter,
# and what is seen of it says little of how much a gradient changes (docs/theory/delta_sam.md).
LINEAR = 0.3


class DeltaSAM(ReweightedPerturbation, name="delta_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights ``p_i ~ h_i^2 / |g_i|`` make the common perturbation the best stand-in for one perturbation per
    example: |g_i| is the norm of example i's gradient, h_i how much that gradient changes when weights move. Examples
    whose gradients change more count more. The two are had in one of four ways (``docs/theory/delta_sam.md`` has how
    close each comes):

    - ``own_curvature``: h_i along the example's own gradient, by how much its loss rises there beyond what the gradient
      says, in one forward in which the per-example engine gives every example a perturbation of its own. |g_i| exactly.
    - ``norms``: |g_i| exactly, from the engine; h_i guessed, as ``|g_i|^(3/4)``, so ``p_i ~ |g_i|^(1/2)``. A scalar
      loss is enough.
    - ``curvature``: |g_i| exactly; h_i by ``|L_i(w+d) + L_i(w-d) - 2 L_i(w)|``, d random, ``d ~ N(0, sigma^2)``, with
      the same dropout masks. The nearest to what is public of the paper's estimate.
    - ``slopes``: as ``norms``, with |g_i| by ``|L_i(w+d) - L_i(w)|``. Works for any model with one loss per example.

    Random estimates are moved towards equal weights by the share of their spread over the batch that is noise: for
    ``curvature`` two such d tell it, for ``slopes`` the normal distribution does.

    With ``own_curvature`` it is SAM where losses are straight over rho: where there is no curvature to see.

    Cost: two passes; with ``own_curvature`` or ``slopes`` a forward more, with ``curvature`` four. With a scalar loss
    or in half precision ``own_curvature`` takes a backward to the activations as well.

    Source: the idea, reweighting by derived factors that random Gaussian perturbations estimate, is from Zhou
    et al., "Sharpness-Aware Minimization with Dynamic Reweighting", Findings of EMNLP 2022 (arXiv 2112.08772).
    No code was published; the formula of the weights and all estimates are derived here.

    When: the paper's method is what you study; or all examples must share a perturbation (``share=global``), and it
    shall be nearer to one for each than SAM's.

    When not: ``per_instance_sam`` runs: that is what this approximates, exact and no dearer. Examples meet in the loss
    (in-batch negatives): it is then not a mean of one loss per example.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        weights: ``own_curvature``, ``norms``, ``curvature``, ``slopes``; or ``auto``: own curvature where the engine
            covers the model, else slopes, with a warning that says why.
        sigma: Standard deviation of the Gaussian, per weight. Too small, and the differences are rounding.
        share: Who shares a perturbation: ``micro-batch``, ``rank`` or ``global``. The weights have mean 1 in every
            micro-batch all the same.

    Raises:
        ValueError: rho is negative, sigma is not above 0, or one of them is NaN or infinite; no such weights.
        NotCoveredError: ``own_curvature``, ``norms`` or ``curvature`` was asked for and the engine does not cover the
            model.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}
    weightings = ("auto", "own_curvature", "norms", "curvature", "slopes")
    engine_weightings = frozenset({"auto", "own_curvature", "norms", "curvature"})

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.02,
        weights: str = "auto",
        sigma: float = 1e-3,
        share: str = "micro-batch",
    ) -> None:
        super().__init__(model, rho=rho, weights=weights, sigma=sigma, share=share)

    def weigh(self, norms: Tensor) -> Tensor:
        # The change h_i of each gradient, guessed from its norm: h_i ~ |g_i|^(3/4).
        return of_mean_1(norms.sqrt())

    def weigh_by_engine(self, passes: Passes, record: Record, gradients: ExampleGradients, norms: Tensor) -> Tensor:
        if self.weights == "norms":
            return self.weigh(norms)
        if not self.rho:
            return torch.ones_like(norms)
        if self.weights == "curvature":
            return self._weigh_by_curvature(passes, record.losses, norms)
        try:
            excess = self._excess(passes, record, gradients, norms)
        except NotCoveredError as reason:
            if self.weights != "auto":
                raise
            # Such a step is that of one batch, and of one process among several: the next may have another.
            self.warn_once(f"DeltaSAM weighs by norms alone in steps like this one: {reason}")
            return self.weigh(norms)
        return of_mean_1(LINEAR**2 + norms / norms.mean() * excess.square())

    def _excess(self, passes: Passes, record: Record, gradients: ExampleGradients, norms: Tensor) -> Tensor:
        """By how much each example's loss rises otherwise along its gradient than that says, relative to that [n].

        With h_i the curvature along the gradient it is ``rho |h_i| / 2 |g_i|``, to second order. What may be rounding
        does not count.
        """
        steps = gradients.scaled(torch.where(norms > 0, self.rho / norms, 0.0))
        expected = self.rho * norms
        if record.losses.ndim and record.losses_apart and not record.is_coarse:
            expected = expected / passes.loss_scale()
            with perturbed_pass(passes, record, steps) as point:  # with a graph, without which rows are not compared
                rises = example_losses_of(point.output, "DeltaSAM").detach() - record.losses
            # A cross entropy is a difference of logits, whose rounding does not grow smaller with it.
            rounding = self._rounding(record.losses.abs().clamp(min=1), passes.params)
            far = (rises - expected).abs()
            return torch.where((norms > 0) & ~(far <= rounding), far / expected, 0.0)
        # By how much the loss rises there with a longer step of one example: also where none has a loss of its own, and
        # in half precision, in which a difference of losses is mostly rounding and a slope is not.
        way = torch.ones_like(norms, requires_grad=True)
        steps.times(way)
        with perturbed_pass(passes, record, steps) as point:
            (rates,) = passes.grad(losses_of(point.output).sum(), [way])
        if rates is None:
            return torch.zeros_like(norms)
        return torch.where(norms > 0, (rates / expected - 1).abs() / 2, 0.0)

    def _weigh_by_curvature(self, passes: Passes, losses: Tensor, norms: Tensor) -> Tensor:
        """The weights [n] from forwards without a gradient, for the losses and norms of the examples [n]."""
        with torch.no_grad():
            losses = example_losses_of(losses, "DeltaSAM")
            seconds = torch.stack([self._second_difference(passes, losses) for _ in range(DRAWS)])
        self._warn_if_rounding(seconds[0], losses, passes.params)
        return shrunk(torch.where(norms > 0, seconds / norms, 0.0))

    def _second_difference(self, passes: Passes, losses: Tensor) -> Tensor:
        """Of each loss [n], along a new d; |d| is nearly the same for every d."""
        noise = self.random_direction(passes)
        with passes.at(noise, self.sigma) as point:
            above = example_losses_of(point.output, "DeltaSAM")
        with passes.at(noise, -self.sigma) as point:
            below = example_losses_of(point.output, "DeltaSAM")
        return (above - losses) + (below - losses)

    def estimate_weights(self, passes: Passes, losses: Tensor) -> Tensor:
        weights = super().estimate_weights(passes, losses)
        return 1 + kept_share(NOISE_OF_ONE_SLOPE, weights) * (weights - 1)


def of_mean_1(weights: Tensor) -> Tensor:
    """Weights [n] over their mean; equal ones where some are not finite, or all are 0."""
    return equal_unless_finite(weights / weights.mean())


def shrunk(estimates: Tensor) -> Tensor:
    """The size of the mean over draws, of mean 1 over the examples, moved to equal weights as far as that is noise.

    Args:
        estimates: One row per draw, with their signs [draws, n]; in any unit.

    Returns:
        [n]; equal ones where all is noise or cannot be told.
    """
    weights = estimates.mean(0).abs()
    noise = estimates.var(0).mean() / len(estimates)
    weights = weights.mean() + kept_share(noise, weights) * (weights - weights.mean())
    return of_mean_1((weights / weights.mean()).clamp(max=LARGEST_WEIGHT))


def kept_share(noise: Tensor | float, weights: Tensor) -> Tensor:
    """The share of the variance of weights [n] over the batch that is not noise, from 0 to 1: James and Stein's."""
    variance = weights.var(correction=min(1, len(weights) - 1))  # one example has none
    return (1 - noise / variance).clamp(min=0)
