"""Reweighted SAM: examples with larger gradients count more in the perturbation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import nonnegative
from deltasam.core.passes import Passes
from deltasam.methods.bases.reweighted import ReweightedPerturbation, equal_unless_finite


class RWSAM(ReweightedPerturbation, name="rw_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights are a Gibbs distribution, ``p_i ~ exp(tilt * |g_i| / mean_j |g_j|)``: among all distributions of equal
    entropy, the one with the largest mean norm. The batch's perturbation thus follows more of the noise between
    examples, as a perturbation for each part of the batch would. The norms |g_i| are obtained in one of two ways:

    - ``slopes``: from ``|L_i(w+d) - L_i(w)| / sigma``, where each element of d is sigma or -sigma at random, with the
      same dropout masks. Needs one loss per example.
    - ``norms``: exactly, from the per-example engine. A scalar loss is enough.

    Cost: two passes, and either a forward (``slopes``) or the norms (``norms``).

    Source: Luo et al., "Unveiling m-Sharpness Through the Structure of Stochastic Gradient Noise", 2025 (arXiv
    2509.18001): the Gibbs weights and the slopes. There the exponent is lambda |g_i|; this library divides by the
    batch's mean, so that the effect of a tilt depends neither on the scale of the loss nor on the stage of training
    (lambda is ``tilt / mean_j |g_j|``); ``norms`` and the default ``tilt`` and ``sigma`` are this library's too.

    When: hard examples should dominate the perturbation: the opposite tendency of ``delta_sam``, so worth comparing
    with it.

    When not: labels are noisy: mislabelled examples have the largest gradients, and count the most.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        tilt: Strength of the weighting towards larger gradients; 0 is SAM.
        weights: ``slopes``, ``norms``; or ``auto``: norms where the engine covers the model, else slopes, with a
            warning that gives the reason.
        sigma: Magnitude of each element of d. If too small, the differences are rounding errors.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``. In each case the weights have mean 1
            in every micro-batch.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho or tilt is negative, sigma is not above 0, or one of them is NaN or infinite; weights is
            unknown.
        NotCoveredError: weights is ``norms`` and the engine does not cover the model.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.02,
        tilt: float = 1.0,
        weights: str = "slopes",
        sigma: float = 1e-3,
        share: str = "micro-batch",
        only: str | None = None,
    ) -> None:
        super().__init__(model, rho=rho, weights=weights, sigma=sigma, share=share, only=only)
        self.tilt = nonnegative("RWSAM", "tilt", tilt)

    def weigh(self, norms: Tensor) -> Tensor:
        return equal_unless_finite(len(norms) * torch.softmax(self.tilt * norms / norms.mean(), 0))

    def random_direction(self, passes: Passes) -> list[Tensor]:
        return [z.sign() for z in passes.noise()]
