"""delta-SAM: one perturbation per batch, reweighted to approximate per-instance perturbations."""

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

# Estimated weights are clamped to this multiple of their mean, and then rescaled to mean 1.
LARGEST_WEIGHT = 4.0

# The slope of a loss along a Gaussian is |g| |z| with z standard normal, and a weight is the square root of the slope.
# Variance of |z|^(1/2) over its squared mean: E|z| / (E|z|^(1/2))^2 - 1, from the moments of the normal distribution.
NOISE_OF_ONE_SLOPE = math.sqrt(math.pi) / math.gamma(0.75) ** 2 - 1

# The smallest number of Gaussians whose variance can be estimated. Four come closer by 2 % at most.
DRAWS = 2

# Where every loss rises as its gradient predicts, to within this fraction, delta-SAM reduces to SAM: the curvature is
# too small to matter, and its measurement says little about how much a gradient changes (docs/theory/delta_sam.md).
LINEAR = 0.3


class DeltaSAM(ReweightedPerturbation, name="delta_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights ``p_i ~ h_i^2 / |g_i|`` make the shared perturbation the best approximation of one perturbation per
    example: |g_i| is the norm of example i's gradient, h_i how much that gradient changes when the weights move.
    Examples whose gradients change more count more. Both are obtained in one of four ways (``docs/theory/delta_sam.md``
    reports how close each comes):

    - ``own_curvature``: |g_i| exactly; h_i along the example's own gradient, from how much its loss rises there beyond
      the first-order prediction, in one forward in which the per-example engine perturbs every example separately.
    - ``norms``: |g_i| exactly, from the engine; h_i assumed to be ``|g_i|^(3/4)``, so ``p_i ~ |g_i|^(1/2)``. A scalar
      loss is enough.
    - ``curvature``: |g_i| exactly; h_i from ``|L_i(w+d) + L_i(w-d) - 2 L_i(w)|`` for a random ``d ~ N(0, sigma^2)``,
      with the same dropout masks. The closest to what has been published of the paper's estimate.
    - ``slopes``: as ``norms``, with |g_i| from ``|L_i(w+d) - L_i(w)|``. Works for any model with one loss per example.

    Random estimates are shrunk towards equal weights by the fraction of their variance over the batch that is noise:
    estimated from two draws of d for ``curvature``, known from the normal distribution for ``slopes``.

    With ``own_curvature`` it reduces to SAM where losses are linear over rho, that is, where no curvature is visible.

    Cost: two passes; one forward more with ``own_curvature`` or ``slopes``, four with ``curvature``. With a scalar loss
    or in half precision ``own_curvature`` takes a backward to the activations as well.

    Source: the idea, reweighting by derived factors estimated with random Gaussian perturbations, is from Zhou
    et al., "Sharpness-Aware Minimization with Dynamic Reweighting", Findings of EMNLP 2022 (arXiv 2112.08772).
    No code was published; the formula of the weights and all estimates are derived here.

    When: you study the paper's method; or all examples must share a perturbation (``share=global``) that should be
    closer to per-example perturbations than SAM's.

    When not: ``per_instance_sam`` runs: it computes exactly what this approximates, and is no more expensive. Examples
    interact in the loss (in-batch negatives), which is then not a mean of one loss per example.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        weights: ``own_curvature``, ``norms``, ``curvature``, ``slopes``; or ``auto``: own curvature where the engine
            covers the model, else slopes, with a warning that gives the reason.
        sigma: Standard deviation of the Gaussian, per weight. If too small, the differences are rounding errors.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``. In each case the weights have mean 1
            in every micro-batch.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, sigma is not above 0, or one of them is NaN or infinite; weights is unknown.
        NotCoveredError: weights is ``own_curvature``, ``norms`` or ``curvature`` and the engine does not cover the
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
        only: str | None = None,
    ) -> None:
        super().__init__(model, rho=rho, weights=weights, sigma=sigma, share=share, only=only)

    def weigh(self, norms: Tensor) -> Tensor:
        # With h_i ~ |g_i|^(3/4) assumed, h_i^2 / |g_i| is |g_i|^(1/2).
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
            # The reason may hold for this batch on this process only: the next step tries again.
            self.warn_once(f"DeltaSAM weighs by norms alone in steps like this one: {reason}")
            return self.weigh(norms)
        return of_mean_1(LINEAR**2 + norms / norms.mean() * excess.square())

    def _excess(self, passes: Passes, record: Record, gradients: ExampleGradients, norms: Tensor) -> Tensor:
        """Deviation of each loss's rise along its own gradient from the first-order prediction, relative to it [n].

        With h_i the curvature along the gradient it is ``rho |h_i| / 2 |g_i|``, to second order. A deviation within
        rounding error counts as 0.
        """
        steps = gradients.scaled(torch.where(norms > 0, self.rho / norms, 0.0))
        expected = self.rho * norms
        if record.losses.ndim and record.losses_apart and not record.is_coarse:
            expected = expected / passes.loss_scale()
            with perturbed_pass(passes, record, steps) as point:  # with a graph, without which rows are not compared
                rises = example_losses_of(point.output, "DeltaSAM").detach() - record.losses
            # A cross entropy is a difference of logits, whose rounding error does not shrink with the loss.
            rounding = self._rounding(record.losses.abs().clamp(min=1), passes.params)
            far = (rises - expected).abs()
            return torch.where((norms > 0) & ~(far <= rounding), far / expected, 0.0)
        # The derivative of the loss with respect to each example's step length: it needs no per-example losses, and
        # works in half precision, where a difference of losses is mostly rounding error and a derivative is not.
        way = torch.ones_like(norms, requires_grad=True)
        steps.times(way)
        with perturbed_pass(passes, record, steps) as point:
            (rates,) = passes.grad(losses_of(point.output).sum(), [way])
        if rates is None:
            return torch.zeros_like(norms)
        return torch.where(norms > 0, (rates / expected - 1).abs() / 2, 0.0)

    def _weigh_by_curvature(self, passes: Passes, losses: Tensor, norms: Tensor) -> Tensor:
        """Weights [n] from second differences of the losses [n] and the gradient norms [n]; forwards only."""
        with torch.no_grad():
            losses = example_losses_of(losses, "DeltaSAM")
            seconds = torch.stack([self._second_difference(passes, losses) for _ in range(DRAWS)])
        self._warn_if_rounding(seconds[0], losses, passes.params)
        return shrunk(torch.where(norms > 0, seconds / norms, 0.0))

    def _second_difference(self, passes: Passes, losses: Tensor) -> Tensor:
        """Second difference of each loss [n] along a new d; |d| is nearly the same for every draw."""
        noise = self.moving.restricted(passes, self.random_direction(passes))
        with passes.at(noise, self.sigma) as point:
            above = example_losses_of(point.output, "DeltaSAM")
        with passes.at(noise, -self.sigma) as point:
            below = example_losses_of(point.output, "DeltaSAM")
        return (above - losses) + (below - losses)

    def estimate_weights(self, passes: Passes, losses: Tensor) -> Tensor:
        weights = super().estimate_weights(passes, losses)
        return 1 + kept_share(NOISE_OF_ONE_SLOPE, weights) * (weights - 1)


def of_mean_1(weights: Tensor) -> Tensor:
    """Weights [n] divided by their mean; equal weights if some are not finite or all are 0."""
    return equal_unless_finite(weights / weights.mean())


def shrunk(estimates: Tensor) -> Tensor:
    """Magnitude of the mean over draws, scaled to mean 1 over the examples, shrunk towards equal weights by its noise.

    Args:
        estimates: Signed estimates, one row per draw [draws, n]; in any unit.

    Returns:
        Weights [n]; equal ones where everything is noise or the noise cannot be determined.
    """
    weights = estimates.mean(0).abs()
    noise = estimates.var(0).mean() / len(estimates)
    weights = weights.mean() + kept_share(noise, weights) * (weights - weights.mean())
    return of_mean_1((weights / weights.mean()).clamp(max=LARGEST_WEIGHT))


def kept_share(noise: Tensor | float, weights: Tensor) -> Tensor:
    """Fraction of the variance of weights [n] over the batch that is not noise, from 0 to 1 (James-Stein shrinkage)."""
    variance = weights.var(correction=min(1, len(weights) - 1))  # one example has none
    return (1 - noise / variance).clamp(min=0)
