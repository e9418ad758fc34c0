"""Reweighted SAM: the perturbation listens to the examples with the largest gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import nonnegative
from deltasam.core.passes import Passes
from deltasam.methods.bases.reweighted import ReweightedPerturbation, equal_unless_finite


class RWSAM(ReweightedPerturbation, name="rw_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights are a Gibbs distribution, ``p_i ~ exp(tilt * |g_i| / mean_j |g_j|)``: of all with its entropy, the one
    whose mean of the norms is largest. So the batch's perturbation takes more of the noise between examples, as a
    perturbation for each part of the batch would. The norms |g_i| are had in one of two ways:

    - ``slopes``: by ``|L_i(w+d) - L_i(w)| / sigma``, each element of d being sigma or -sigma by chance, with the same
      dropout masks. Needs one loss per example.
    - ``norms``: exactly, from the per-example engine. A scalar loss is enough.

    Cost: two passes; and a forward (``slopes``) or the norms (``norms``).

    Source: Luo et al., "Unveiling m-Sharpness Through the Structure of Stochastic Gradient Noise", 2025 (arXiv
    2509.18001): the Gibbs weights and the slopes. There the exponent is lambda |g_i|; dividing by the batch's mean is
    this library's, so that neither the scale of the loss nor the stage of training changes what a tilt does (lambda is
    ``tilt / mean_j |g_j|``), as are ``norms`` and the values of ``tilt`` and ``sigma``.

    When: the perturbation shall listen to the hard examples: the opposite leaning of ``delta_sam``, so worth a row
    beside it.

    When not: labels are noisy: wrong ones have the largest gradients, and count the most.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        tilt: How much larger gradients count; 0 is SAM.
        weights: ``slopes``, ``norms``; or ``auto``: norms where the engine covers the model, else slopes, with a
            warning that says why.
        sigma: Size of each element of d. Too small, and the differences are rounding.
        share: Who shares a perturbation: ``micro-batch``, ``rank`` or ``global``. The weights have mean 1 in every
            micro-batch all the same.

    Raises:
        ValueError: rho or tilt is negative, sigma is not above 0, or one of them is NaN or infinite; no such weights.
        NotCoveredError: ``norms`` was asked for and the engine does not cover the model.
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
    ) -> None:
        super().__init__(model, rho=rho, weights=weights, sigma=sigma, share=share)
        self.tilt = nonnegative("RWSAM", "tilt", tilt)

    def weigh(self, norms: Tensor) -> Tensor:
        return equal_unless_finite(len(norms) * torch.softmax(self.tilt * norms / norms.mean(), 0))

    def random_direction(self, passes: Passes) -> list[Tensor]:
        return [z.sign() for z in passes.noise()]
