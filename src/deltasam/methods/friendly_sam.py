"""Friendly SAM: the perturbation leaves out what batches have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import fraction, nonnegative
from deltasam.core.passes import Passes
from deltasam.core.sharding import sharded_modules
from deltasam.method import Step
from deltasam.methods.bases.batch_perturbation import BatchPerturbation, Direction


class FriendlySAM(BatchPerturbation, name="friendly_sam"):
    """SAM along the gradient without its moving average: ``grad L(w + rho * d / |d|)``, ``d = g - sigma * m``.

    ``g = grad L(w)``; m is the exponential moving average of the gradients before this one, an estimate of the gradient
    over all data: what is left is the noise of the batch. Then ``m <- momentum * m + (1 - momentum) * g``. The average
    of a parameter begins with its first gradient, and that step is SAM's.

    Every call of ``backward`` counts, or every micro-batch where they are apart. Several processes average g for m, so
    that m is the same in all of them: as much communication as the gradient, with any ``share``. A gradient that is
    infinite or NaN leaves m alone, and so does a step that a schedule makes plain. m is free of the scale of a loss
    scaler in the runtime; a closure that scales its loss itself must keep to one scale.

    Cost: two passes, and the average: as much memory as the gradient, twice that during the call. It is in
    ``state_dict``, by the names of the parameters.

    Source: Li et al., "Friendly Sharpness-Aware Minimization", CVPR 2024 (arXiv 2403.12350), and the authors' code for
    the order: the paper subtracts m after its update, which for sigma 1 is the same direction.

    When: batches are small and their gradients noisy: to follow the noise, and not what all batches share, is its idea.

    When not: memory is short, or the weights are sharded (refused). In a training of few steps the average has seen
    next to nothing.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        sigma: How much of the average is subtracted; 0 is SAM.
        momentum: Share of the average that is kept at each call (the paper's lambda).
        share: Who shares a perturbation: ``micro-batch``, ``rank`` or ``global``.

    Raises:
        ValueError: rho or sigma is negative, NaN or infinite, momentum is not in [0, 1), or there is no such share; the
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
    ) -> None:
        super().__init__(model, rho=rho, share=share)
        self.sigma = nonnegative("FriendlySAM", "sigma", sigma)
        self.momentum = fraction("FriendlySAM", "momentum", momentum)
        self._average: dict[str, Tensor] = {}  # replaced, never changed: a state once saved stays as it is

    def state_dict(self) -> dict[str, Any]:
        """The moving average of each parameter's gradient."""
        return {"gradient_average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved average.

        Raises:
            ValueError: It is of another method or another model.
        """
        self.check_state(state, ("gradient_average",))
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        for name, value in state["gradient_average"].items():
            if shapes.get(name) != value.shape:
                raise ValueError(
                    f"friendly_sam was given an average of {name} {list(value.shape)}, which the model has not, or in "
                    f"another shape; load what was saved for the same model"
                )
        self._average = dict(state["gradient_average"])

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        if sharded_modules(self.model.modules()):
            raise ValueError(
                f"{self.spec}: FSDP cuts the weights up between the processes, and the moving average with them, so no "
                f"process could save it; use DDP, or sam:share=global"
            )
        return super().fill_step(micro_batches)

    @torch.no_grad()
    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        scale = passes.loss_scale()  # of the gradients; the average is in units of the loss
        trained = passes.structure.trained
        before = [m if (m := self._average.get(n)) is None else m.to(p) for n, p in trained.items()]
        batch = ascent if self.share == "global" else passes.mean_over_processes(ascent)
        if math.isfinite(vectors.length(batch).value):
            after = [self._moved(m, g, scale) for m, g in zip(before, batch, strict=True)]
            self._average = {n: m for n, m in zip(trained, after, strict=True) if m is not None}
        return Direction([self._without(m, g, scale) for m, g in zip(before, ascent, strict=True)])

    def _moved(self, average: Tensor | None, gradient: Tensor | None, scale: float) -> Tensor | None:
        """The average with one more gradient; none is a gradient of 0, once there is an average."""
        if average is None:
            return None if gradient is None else gradient / scale
        kept = self.momentum * average
        return kept if gradient is None else kept.add_(gradient, alpha=(1 - self.momentum) / scale)

    def _without(self, average: Tensor | None, gradient: Tensor | None, scale: float) -> Tensor | None:
        """What of a gradient is not the average's."""
        if average is None:
            return gradient
        common = average * (-self.sigma * scale)
        return common if gradient is None else common.add_(gradient)
