"""Friendly SAM: the perturbation leaves out the component that batches have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import fraction, nonnegative
from deltasam.core.passes import Passes
from deltasam.methods.bases.batch_perturbation import Direction
from deltasam.methods.bases.gradient_average import RemembersAverage
from deltasam.methods.bases.gradient_state import values_of


class FriendlySAM(RemembersAverage, name="friendly_sam"):
    """SAM along the gradient without its moving average: ``grad L(w + rho * d / |d|)``, ``d = g - sigma * m``.

    ``g = grad L(w)``; m is the exponential moving average of the previous gradients, an estimate of the gradient over
    all data: what is left is the noise of the batch. Then ``m <- momentum * m + (1 - momentum) * g``. The average of a
    parameter starts with its first gradient, and that step is SAM's.

    Every call of ``backward`` updates m, or every micro-batch where each has its own perturbation. Several processes
    average g for m, so that m is the same on all of them: as much communication as for the gradient, with any
    ``share``. m is not updated by a gradient that is infinite or NaN, nor in a step that a schedule makes plain. m does
    not depend on the scale of a loss scaler in the runtime; a closure that scales its loss itself must use one scale.

    Cost: two passes, and the average: as much memory as the gradient, twice that during the call. It is in
    ``state_dict``, by parameter name.

    Source: Li et al., "Friendly Sharpness-Aware Minimization", CVPR 2024 (arXiv 2403.12350), and the authors' code for
    the order: the paper subtracts m after its update, which for sigma 1 gives the same direction.

    When: batches are small and their gradients noisy: its idea is to follow the noise and not what all batches share.

    When not: memory is short, or the weights are sharded (refused). In a training run of few steps the average has seen
    next to nothing.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        sigma: Factor of the average that is subtracted; 0 is SAM.
        momentum: Decay factor of the average at each call (the paper's lambda).
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho or sigma is negative, NaN or infinite, momentum is not in [0, 1), share is unknown, or the
            weights are sharded.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.02,
        sigma: float = 1.0,
        momentum: float = 0.9,
        share: str = "micro-batch",
        only: str | None = None,
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
        self.sigma = nonnegative("FriendlySAM", "sigma", sigma)
        self.momentum = fraction("FriendlySAM", "momentum", momentum)

    @torch.no_grad()
    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        before = values_of(passes, self._average)
        self.update_average(passes, self.average_over_processes(passes, ascent), self.momentum)
        scale = passes.loss_scale()  # of the gradients, not of the average
        return Direction([self._without(m, g, scale) for m, g in zip(before, ascent, strict=True)])

    def _without(self, average: Tensor | None, gradient: Tensor | None, scale: float) -> Tensor | None:
        """The gradient minus sigma times the average."""
        if average is None:
            return gradient
        common = average * (-self.sigma * scale)
        return common if gradient is None else common.add_(gradient)
