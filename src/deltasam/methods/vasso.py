"""VaSSO: the perturbation follows a moving average of gradients, which has less noise than one batch's."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import within
from deltasam.core.passes import Passes
from deltasam.methods.bases.batch_perturbation import Direction
from deltasam.methods.bases.gradient_average import RemembersAverage
from deltasam.methods.bases.gradient_state import values_of


class VaSSO(RemembersAverage, name="vasso"):
    """SAM along a moving average of gradients: ``grad L(w + rho * d / |d|)``, ``d <- (1 - theta) * d + theta * g``.

    ``g = grad L(w)`` enters d before it is followed. The opposite of ``friendly_sam``, which follows what the average
    leaves out. d starts with a parameter's first gradient, and that step is SAM's.

    Every call of ``backward`` updates d, or every micro-batch where each has its own perturbation. Several processes
    average g for d, so that d is the same on all of them: as much communication as for the gradient, with any
    ``share``. d is not updated by a gradient that is infinite or NaN, nor in a step that a schedule makes plain, and
    does not depend on the scale of a loss scaler in the runtime.

    Cost: two passes, and the average: as much memory as the gradient. It is in ``state_dict``, by parameter name.

    Source: Li and Giannakis, "Enhancing Sharpness-Aware Optimization Through Variance Suppression", NeurIPS 2023 (arXiv
    2309.15639), equation 7; theta as in the authors' code.

    When: batches are small, and SAM's perturbation follows their noise more than their common slope.

    When not: memory is short, or the weights are sharded (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        theta: Weight of the newest gradient in the average; 1 is SAM.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, theta is not above 0 and at most 1, one of them is NaN or infinite, share is
            unknown, or the weights are sharded.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.02,
        theta: float = 0.9,
        share: str = "micro-batch",
        only: str | None = None,
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
        self.theta = within("VaSSO", "theta", theta)

    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        batch = self.average_over_processes(passes, ascent)
        if not self.update_average(passes, batch, 1 - self.theta):
            return Direction(batch)  # it is infinite or NaN: nothing moves along it
        average, scale = values_of(passes, self._average), passes.loss_scale()
        return Direction(average if scale == 1 else vectors.times(average, scale))
