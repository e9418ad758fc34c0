"""LookSAM: SAM's second pass in every k-th step only; in between its direction is used again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative, whole
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.core.vectors import Length
from deltasam.method import Step
from deltasam.methods.bases.gradient_state import check_vectors, values_of
from deltasam.methods.bases.two_gradients import TwoGradients


@dataclass(frozen=True)
class Sums:
    """What v is made of.

    Attributes:
        step: Number of the optimizer step.
        plain: Sum of the gradients g of its micro-batches so far, by parameter name.
        perturbed: Sum of their gradients g_s.
    """

    step: int
    plain: dict[str, Tensor]
    perturbed: dict[str, Tensor]


class LookSAM(TwoGradients, name="looksam"):
    """SAM in every k-th step, and its direction again in between: ``g + alpha * |g| / |v| * v``.

    In a SAM step the gradient is ``g_s = grad L(w + rho * g / |g|)``, and ``v = g_s - (g . g_s) / |g|^2 * g`` is kept:
    the part of g_s orthogonal to ``g = grad L(w)``, which changes slowly over the steps. Norms and products are over
    all weights.

    Steps of the optimizer are counted: call ``method.follow(optimizer)`` once before training. A step for which no v
    has been kept yet is a SAM step too. All micro-batches of a step are of one kind, and v is made of the sums of their
    gradients, averaged over processes in a SAM step. A step whose gradients are infinite or NaN leaves v as it is.

    Cost: one pass, two in every k-th step, and as much memory as the gradient; twice that in a SAM step.

    Source: Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022 (arXiv 2203.02714),
    algorithm 1.

    When: two passes are too expensive, and the one-pass methods are too far from SAM.

    When not: training is a few hundred steps: v is old for most of them. Memory is short, or the weights are sharded
    (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        k: Number of optimizer steps from one SAM step to the next; 1 is SAM.
        alpha: Length of the kept direction, as a fraction of the gradient's.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho or alpha is negative, NaN or infinite, k is below 1, or the weights are sharded.
        RuntimeError: It follows no optimizer.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self, model: nn.Module, *, rho: float = 0.02, k: int = 5, alpha: float = 0.7, only: str | None = None
    ) -> None:
        super().__init__(model, rho=rho, only=only)
        self.k = whole("LookSAM", "k", k)
        self.alpha = nonnegative("LookSAM", "alpha", alpha)
        self._step = 0
        # Replaced, never modified in place: saved states keep their values.
        self._turn: dict[str, Tensor] = {}
        self._sums: Sums | None = None
        self._length: tuple[dict[str, Tensor], tuple[bool, ...], Length] | None = None

    def follow(self, optimizer: torch.optim.Optimizer, *, total_steps: int | None = None) -> None:
        """Count the steps of an optimizer from now on, starting at 0."""
        self._step, self._sums = 0, None
        self.after_each_step(optimizer, self._count)

    def _count(self, *_: object) -> None:
        self._step += 1

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy: the kept direction, and not what it was made of."""
        return {**super().__getstate__(), "_turn": self._latest_turn(), "_sums": None, "_length": None}

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far, and the kept direction by parameter name."""
        return {"steps": self._step, "turn": dict(self._latest_turn())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; call it after ``follow``, which starts at 0.

        Raises:
            ValueError: The state was saved by another method or for another model.
        """
        self.check_state(state, ("steps", "turn"))
        self._turn, self._sums = check_vectors(self, state["turn"], "a direction"), None
        self._step = state["steps"]

    def fill(self, passes: Passes) -> Step:
        if self._following is None:
            raise RuntimeError(
                f"{self.spec} counts the steps of the optimizer; call method.follow(optimizer) once before training"
            )
        in_making = self._sums is not None and self._sums.step == self._step
        if self.rho == 0 or self._step % self.k == 0 or in_making or not self._latest_turn():
            return super().fill(passes)
        self._turn, self._sums = self._latest_turn(), None
        loss = loss_of(passes.first())
        plain = passes.grad(loss)
        turn = values_of(passes, self._turn)
        turn = [None if g is None else v for g, v in zip(plain, turn, strict=True)]  # of what this batch uses
        factor = vectors.length_to(self.alpha * vectors.length(plain).value, self._length_of(turn))
        total = vectors.plus(plain, turn, factor)
        plain.clear()
        passes.accumulate(total, loss)
        return Step(loss.detach())

    def combine(
        self, passes: Passes, plain: list[Tensor | None], perturbed: list[Tensor | None]
    ) -> list[Tensor | None]:
        if self.k > 1:
            scale, names, sums = passes.loss_scale(), passes.structure.trained, self._sums
            of_step: list[dict[str, Tensor]] = []
            for vector, before in ((plain, sums and sums.plain), (perturbed, sums and sums.perturbed)):
                total = passes.mean_over_processes(vector)
                total = total if scale == 1 else vectors.times(total, 1 / scale)
                if sums is not None and before and sums.step == self._step and not passes.begins_step:
                    total = vectors.plus(values_of(passes, before), total)
                of_step.append({n: v for n, v in zip(names, total, strict=True) if v is not None})
            self._sums = Sums(self._step, *of_step)
        return perturbed

    def _length_of(self, turn: list[Tensor | None]) -> Length:
        """The norm of v in what is trained and used now; the same until one of them changes."""
        there = tuple(v is not None for v in turn)
        if self._length is None or self._length[0] is not self._turn or self._length[1] != there:
            self._length = self._turn, there, vectors.length(turn)
        return self._length[2]

    def _latest_turn(self) -> dict[str, Tensor]:
        """v, made of the sums of the last SAM step if there was one since."""
        if self._sums is None:
            return self._turn
        names = list(self._sums.perturbed)
        g, g_s = ([of.get(n) for n in names] for of in (self._sums.plain, self._sums.perturbed))
        turn = vectors.plus(g_s, g, -vectors.projection(g_s, g))
        if not math.isfinite(vectors.length(turn).value):
            return self._turn
        return {n: v for n, v in zip(names, turn, strict=True) if v is not None}
