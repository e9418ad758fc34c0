"""GSAM: minimises the perturbed loss and the gap to the plain one."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative
from deltasam.core.passes import Passes
from deltasam.methods.bases.two_gradients import TwoGradients


class GSAM(TwoGradients, name="gsam"):
    """SAM's gradient, less what the plain one has beside it: ``g_s - alpha * (g - (g . g_s) / |g_s|^2 * g_s)``.

    ``g = grad L(w)``, ``g_s = grad L(w + rho * g / |g|)``. The part of g orthogonal to g_s changes the plain loss and,
    to first order, not the perturbed one: against it, the gap between the two (the surrogate of sharpness) shrinks.

    Cost: two passes, and both gradients at a time in memory.

    Source: Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022 (arXiv 2203.08065),
    algorithm 1, and the authors' code. There rho follows the learning rate; here it is constant unless a schedule is
    given (``@cosine``, ``@decay``).

    When: a large radius helps but slows the fit down; alpha gives sharpness more weight at the same radius.

    When not: labels are noisy and the plain loss should not rise: the term climbs it. The weights are sharded
    (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        alpha: Weight of the orthogonal part; 0 is SAM.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho or alpha is negative, NaN or infinite, or the weights are sharded.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.02, alpha: float = 0.2, only: str | None = None) -> None:
        super().__init__(model, rho=rho, only=only)
        self.alpha = nonnegative("GSAM", "alpha", alpha)

    def combine(
        self, passes: Passes, plain: list[Tensor | None], perturbed: list[Tensor | None]
    ) -> list[Tensor | None]:
        along = vectors.projection(plain, perturbed)
        return vectors.plus(vectors.times(perturbed, 1 + self.alpha * along), plain, -self.alpha)
