"""Sharpness-aware minimization with one perturbation per batch."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.checks import nonnegative
from deltasam.method import Method, Step
from deltasam.outputs import loss_of
from deltasam.passes import Passes


class SAM(Method, name="sam"):
    """Gradient at the adversarial weights of the batch: ``grad L(w + rho * g / |g|)``, ``g = grad L(w)``.

    Minimises the largest loss within distance rho of the weights, to first order, the perturbation held
    constant. Cost: two passes.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021
    (arXiv 2010.01412), equation 2 and algorithm 1.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.

    Raises:
        ValueError: rho is negative, NaN or infinite.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.02) -> None:
        super().__init__(model)
        self.rho = nonnegative("SAM", "rho", rho)

    def _fill(self, passes: Passes) -> Step:
        loss = loss_of(passes.first())
        metrics = passes.descend(passes.grad(loss), self.rho)
        return Step(loss.detach(), metrics)
