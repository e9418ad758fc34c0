"""delta-SAM: one perturbation per batch, reweighted towards what per-instance perturbations would have done."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.outputs import example_losses_of
from deltasam.passes import Passes
from deltasam.reweighted_ascent import ReweightedAscent

# A slope estimated from one Gaussian may be near 0 by chance, and is divided by: it counts as at least this
# share of the batch's mean slope. A weight counts as at most LARGEST times the mean, which is then brought to 1 again.
SMALLEST_SLOPE = 0.1
LARGEST_WEIGHT = 4.0


class DeltaSAM(ReweightedAscent, name="delta_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights ``p_i ~ h_i^2 / |g_i|`` make the common perturbation the best stand-in for one perturbation per
    example: |g_i| is the norm of example i's gradient, h_i how much its gradient changes under a random
    perturbation d of the weights, ``d ~ N(0, sigma^2)``, with the same dropout masks. They are had in one of three
    ways (``docs/theory/delta_sam.md`` has how close each comes):

    - ``norms``: exact norms from the per-example engine, ``h_i ~ |g_i|^(1/4)``, so ``p_i ~ |g_i|^(-1/2)``. The ascent
      itself comes from the record of the first pass. A scalar loss is enough.
    - ``slopes``: |g_i| by ``|L_i(w+d) - L_i(w)|``, otherwise the same. Works for any model with one loss per
      example.
    - ``curvature``: h_i by ``|L_i(w+d) + L_i(w-d) - 2 L_i(w)|``, |g_i| by ``|L_i(w+d) - L_i(w-d)|``. Likewise.

    Only ``curvature`` weighs by the change itself, as the paper's abstract has it. The guess of the other two weighs
    examples with small gradients up; they are the default since they came closer to per-instance SAM.

    Cost: two passes; with ``slopes`` a forward more, with ``curvature`` two.

    Source: the idea, reweighting by derived factors that random Gaussian perturbations estimate, is from Zhou
    et al., "Sharpness-Aware Minimization with Dynamic Reweighting", Findings of EMNLP 2022 (arXiv 2112.08772).
    No code was published; the formula of the weights and all three estimates are derived here.

    When: the paper's method is what you study; or one perturbation per example is wanted and ``per_instance_sam``
    refuses the model. Then ``fidelity`` tells whether the weights bring it any closer than SAM.

    When not: ``per_instance_sam`` runs: that is what this approximates, exact and no dearer. Examples meet in the loss
    (in-batch negatives): it is then not a mean of one loss per example.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        weights: ``norms``, ``slopes``, ``curvature``; or ``auto``: norms where the engine covers the model, else
            slopes, with a warning that says why.
        sigma: Standard deviation of the Gaussian, per weight. Too small, and the differences are rounding.
        share: Who shares a perturbation: ``micro-batch``, ``rank`` or ``global``. The weights have mean 1 in every
            micro-batch all the same.

    Raises:
        ValueError: rho is negative, sigma is not above 0, or one of them is NaN or infinite; no such weights.
        NotCoveredError: ``norms`` was asked for and the engine does not cover the model.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}
    ways = (*ReweightedAscent.ways, "curvature")

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

    def _weigh(self, norms: Tensor) -> Tensor:
        # The change h_i of each gradient, guessed from its norm: it grows with the fourth root.
        return reweight((norms / norms.mean()).pow(0.25), norms)

    def _estimate(self, passes: Passes, losses: Tensor) -> Tensor:
        if self.weights != "curvature":
            return super()._estimate(passes, losses)
        noise = self._noise(passes)
        with passes.at(noise, self.sigma) as point:
            above = example_losses_of(point.output, "DeltaSAM")
        with passes.at(noise, -self.sigma) as point:
            below = example_losses_of(point.output, "DeltaSAM")
        # |d| is the same for every example, so it cancels when the weights are brought to mean 1.
        second, first = (above - losses) + (below - losses), above - below
        self._warn_if_rounding(second, losses, passes.params)
        return reweight(second.abs(), first.abs())


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
