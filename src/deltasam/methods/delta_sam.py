"""delta-SAM: one perturbation per batch, reweighted towards what per-instance perturbations would have done."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.checks import nonnegative, positive
from deltasam.method import Method, Step
from deltasam.outputs import example_losses_of
from deltasam.passes import Passes

# A slope estimated from one Gaussian may be near 0 by chance, and is divided by: it counts as at least this
# share of the batch's mean slope. No example may weigh more than LARGEST times the mean.
SMALLEST_SLOPE = 0.1
LARGEST_WEIGHT = 4.0
# Rounding errors of a forward pass, in units of (machine epsilon * loss), as measured on a 6-layer encoder.
ROUNDINGS = 8.0


class DeltaSAM(Method, name="delta_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights ``p_i ~ h_i^2 / |g_i|`` make the common perturbation the best stand-in for one perturbation per
    example: examples whose gradient changes more count more. They are estimated from two forwards at
    ``w + d`` and ``w - d``, ``d ~ N(0, sigma^2)``, with the same dropout masks: the change of the gradient h_i
    by ``|L_i(w+d) + L_i(w-d) - 2 L_i(w)| / |d|^2`` and the norm by ``|L_i(w+d) - L_i(w-d)| / (2 |d|)``.
    Needs one loss per example. Cost: two passes and two forwards.

    Source: the idea, reweighting by derived factors that random Gaussian perturbations estimate, is from Zhou
    et al., "Sharpness-Aware Minimization with Dynamic Reweighting", Findings of EMNLP 2022 (arXiv 2112.08772).
    No code was published; the formula of the weights and their estimators are derived here.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        sigma: Standard deviation of the Gaussian, per weight. Too small, and the second difference is rounding.

    Raises:
        ValueError: rho is negative, sigma is not above 0, or one of them is NaN or infinite.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.02, sigma: float = 4e-4) -> None:
        super().__init__(model)
        self.rho = nonnegative("DeltaSAM", "rho", rho)
        self.sigma = positive("DeltaSAM", "sigma", sigma)

    def _fill(self, passes: Passes) -> Step:
        losses = example_losses_of(passes.first(), "DeltaSAM")
        weights = self._weights(passes, losses.detach())
        ascent = passes.grad((weights * losses).mean())
        return Step(losses.detach().mean(), {**passes.descend(ascent, self.rho), "weights": weights})

    @torch.no_grad()
    def _weights(self, passes: Passes, losses: Tensor) -> Tensor:
        noise = passes.store.gaussian(passes.params, passes.generator())
        with passes.at(noise, self.sigma) as point:
            above = example_losses_of(point.output, "DeltaSAM")
        with passes.at(noise, -self.sigma) as point:
            below = example_losses_of(point.output, "DeltaSAM")
        # |d| is the same for every example, so it cancels when the weights are brought to mean 1.
        second, first = (above - losses) + (below - losses), above - below
        self._warn_if_rounding(second, losses, passes.params)
        return reweight(second.abs(), first.abs())

    def _warn_if_rounding(self, second: Tensor, losses: Tensor, params: list[nn.Parameter]) -> None:
        dtypes = {losses.dtype, *(p.dtype for p in params)}
        if torch.is_autocast_enabled(losses.device.type):
            dtypes.add(torch.get_autocast_dtype(losses.device.type))
        epsilon = max(torch.finfo(d).eps for d in dtypes)
        if (second.abs() < ROUNDINGS * epsilon * losses.abs()).float().mean() > 0.5:
            warnings.warn(
                f"DeltaSAM(sigma={self.sigma}): the loss changes by no more than rounding for most examples, so "
                f"the weights are noise; raise sigma, or compute in a wider floating-point type",
                RuntimeWarning,
                stacklevel=2,
            )


def reweight(curvature: Tensor, slope: Tensor) -> Tensor:
    """Weights ``curvature^2 / slope`` [n], floored, clipped, mean 1; uniform where they cannot be told.

    Args:
        curvature: Size of the change of each gradient [n], in any unit that is common to the batch.
        slope: Norm of each gradient [n], in any unit that is common to the batch.
    """
    raw = curvature.square() / slope.clamp(min=SMALLEST_SLOPE * slope.mean())
    clipped = (raw / raw.mean()).clamp(max=LARGEST_WEIGHT)
    weights = clipped / clipped.mean()
    return torch.where(weights.isfinite().all(), weights, torch.ones_like(weights))
