"""Momentum SAM: the weights move along the optimizer's momentum, which is there already."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.core.passes import Passes
from deltasam.core.vectors import Vector
from deltasam.methods.bases.known_perturbation import KnownPerturbation
from deltasam.methods.bases.optimizer_state import ReadsOptimizer


class MomentumSAM(ReadsOptimizer, KnownPerturbation, name="momentum_sam"):
    """Gradient at weights moved against the optimizer's momentum: ``grad L(w - rho * m / |m|)``.

    m is the average of past gradients that the optimizer keeps: SGD's momentum buffer, Adam's first moment. The sign is
    the authors': the weights move where the optimizer is about to go, as with Nesterov's momentum, only further, and
    their paper shows that this is an ascent for the batches that follow. Before the optimizer's first step there is no
    momentum, and the step is a plain one.

    Call ``method.follow(optimizer)`` once before training. Weights, evaluation and checkpoints need no care: the
    weights are back after every call, where the authors' optimizer leaves them moved.

    Cost: one pass.

    Source: Becker, Altrock and Risse, "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead", 2024
    (arXiv 2401.12033), algorithm 1, and the authors' code.

    When: training must cost what plain training costs.

    When not: the optimizer keeps no momentum (refused), or a quantized one (refused). Its radius is far larger than
    SAM's: the authors use 3 where they use 0.2 for SAM.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite.
        RuntimeError: It follows no optimizer, or one without momentum.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}
    towards = -1.0
    optimizer_keys = ("momentum_buffer", "exp_avg")

    def __init__(self, model: nn.Module, *, rho: float = 0.3, only: str | None = None) -> None:
        super().__init__(model, rho=rho, only=only)

    def known_direction(self, passes: Passes) -> Vector:
        return self.optimizer_state(passes)
