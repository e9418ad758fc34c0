"""WSAM: sharpness as a term of the loss, with a weight of its own."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import fraction
from deltasam.core.passes import Passes
from deltasam.methods.bases.two_gradients import TwoGradients


class WSAM(TwoGradients, name="wsam"):
    """Plain loss and weighted sharpness: ``grad [L(w) + gamma / (1 - gamma) * (L(w + rho * g / |g|) - L(w))]``.

    ``g = grad L(w)``; the perturbation is treated as a constant. gamma = 1/2 is SAM, 0 is plain training, and above 1/2
    the difference of the two gradients is extrapolated.

    Cost: two passes, and both gradients at a time in memory.

    Source: Yue et al., "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term", KDD 2023
    (arXiv 2305.15817), equation 6. Their decoupled form, in which the sharpness term bypasses the optimizer's
    preconditioning, changes the optimizer's step and not the gradient: it is left out.

    When: SAM helps and more of it should be tried without a larger radius.

    When not: gamma is near 1: the weight 9 of gamma = 0.9 multiplies the noise of both gradients too. The weights are
    sharded (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        gamma: Weight of the sharpness, from 0 (plain training) to below 1.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, gamma is not in [0, 1), or the weights are sharded.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.02, gamma: float = 0.8, only: str | None = None) -> None:
        super().__init__(model, rho=rho, only=only)
        self.gamma = fraction("WSAM", "gamma", gamma)

    def combine(
        self, passes: Passes, plain: list[Tensor | None], perturbed: list[Tensor | None]
    ) -> list[Tensor | None]:
        weight = self.gamma / (1 - self.gamma)
        return vectors.plus(vectors.times(perturbed, weight), plain, 1 - weight)
