"""Base class of the methods whose gradient is made of two: that at the weights, and that at the perturbed weights."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative
from deltasam.core.closeness import is_looked_at
from deltasam.core.closure import loss_of
from deltasam.core.only import Only
from deltasam.core.passes import Passes, radius_ratio
from deltasam.core.repeats import refuse_another_loss
from deltasam.method import Method, Step
from deltasam.methods.bases.gradient_state import refuse_sharded


class TwoGradients(Method):
    """A combination of ``g = grad L(w)`` and SAM's ``g_s = grad L(w + rho * g / |g|)``.

    Every micro-batch of every process has gradients of its own, and combines them itself; what is averaged over
    processes is the combination.

    Args:
        model: The model to train.
        rho: Radius of the perturbation. 0 is plain training.
        only: Parameters that move, as text; None: all.
    """

    def __init__(self, model: nn.Module, *, rho: float, only: str | None = None) -> None:
        super().__init__(model)
        self.rho = nonnegative(type(self).__name__, "rho", rho)
        self.only = only
        self.moving = Only(type(self).__name__, only)
        self._steps = 0

    @abc.abstractmethod
    def combine(
        self, passes: Passes, plain: list[Tensor | None], perturbed: list[Tensor | None]
    ) -> list[Tensor | None]:
        """The method's gradient, one tensor per parameter.

        Args:
            passes: The passes of the micro-batch, which both have run.
            plain: The gradient g at the weights.
            perturbed: The gradient g_s at the perturbed weights.
        """

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        refuse_sharded(self, "the first of two gradients")
        return super().fill_step(micro_batches)

    def fill(self, passes: Passes) -> Step:
        loss = loss_of(passes.first())
        if self.rho == 0:
            return Step(passes.backward(loss))
        plain = passes.grad(loss)
        loss = loss.detach()
        self._steps += 1
        if is_looked_at(self._steps):
            refuse_another_loss(passes, loss)
        ascent = self.moving.restricted(passes, plain)
        length = vectors.length(ascent)
        passes.moves_nothing = length.value == 0
        with passes.at(ascent, vectors.length_to(self.rho, length)) as point:
            there = loss_of(point.output)
            perturbed = passes.grad(there)
            ratio = radius_ratio(point.radius(), self.rho)
        metrics = {"perturbed_loss": there.detach(), "ascent_norm": length.norm, "radius_ratio": ratio}
        # An infinite gradient perturbs nothing, and is not combined with anything: as for SAM.
        combined = self.combine(passes, plain, perturbed) if math.isfinite(length.value) else perturbed
        plain.clear()
        passes.accumulate(combined, loss)
        return Step(loss, metrics)
