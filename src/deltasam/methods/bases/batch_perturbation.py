"""Base class of the methods with one perturbation per batch, and the scopes of a batch (micro-batch, rank, global)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative, one_of
from deltasam.core.closeness import is_looked_at
from deltasam.core.closure import loss_of
from deltasam.core.only import Only
from deltasam.core.passes import Passes
from deltasam.core.repeats import refuse_another_loss
from deltasam.core.reuse import ReuseHistory
from deltasam.core.vectors import Length, Vector
from deltasam.method import Method, Step

SHARES = ("micro-batch", "rank", "global")


@dataclass
class Ascent:
    """Result of the first pass of a micro-batch.

    Attributes:
        loss: Mean loss [], detached.
        vector: Gradient of the objective to ascend, one tensor per parameter.
        metrics: Further metrics to report.
        slope: Gradient of the loss with respect to the model's outputs, for methods that keep it.
    """

    loss: Tensor
    vector: list[Tensor | None]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    slope: Tensor | None = None


@dataclass
class Direction:
    """Direction in which the weights move.

    Attributes:
        vector: The direction, one tensor per parameter.
        length: Length of the vector in the units of the radius; None: the Euclidean norm.
        scales: Units of the radius, one tensor per parameter; None: Euclidean.
    """

    vector: list[Tensor | None]
    length: Length | None = None
    scales: Vector | None = None


class BatchPerturbation(Method):
    """Gradient at ``w + rho * a / |a|``, where the ascent ``a`` is computed from a whole batch.

    With gradient accumulation or several processes, ``share`` sets which ascents are summed before the weights move
    (``docs/how-to/distributed.md``):

    - ``micro-batch``: none. Each micro-batch of each process has its own perturbation; no communication.
    - ``rank``: those of all micro-batches of one process, given in one call of ``backward``.
    - ``global``: those of all processes and all micro-batches in the call. The ascent is averaged over the processes,
      which costs as much communication as the gradient.

    Args:
        model: The model to train.
        rho: Radius of the perturbation. 0 is plain training.
        share: Scope of a perturbation.
        only: Parameters that move, as text; None: all.
    """

    def __init__(self, model: nn.Module, *, rho: float, share: str, only: str | None = None) -> None:
        super().__init__(model)
        self.rho = nonnegative(type(self).__name__, "rho", rho)
        self.share = one_of(type(self).__name__, "share", share, SHARES)
        self.only = only
        self.moving = Only(type(self).__name__, only)
        self._reused = ReuseHistory()
        self._steps = 0

    reuses_outputs: ClassVar[bool] = True
    """Whether the first pass is a plain one, whose outputs below the parameters that move serve the second too."""

    @property
    def needs_all_micro_batches(self) -> bool:
        """Whether the micro-batches of a step must be given in one call."""
        return self.share != "micro-batch"

    def ascent(self, passes: Passes) -> Ascent:
        """Run the first pass: the gradient of the mean loss, unless overridden."""
        loss = loss_of(passes.first())
        return Ascent(loss.detach(), self.moving.grad(passes, loss))

    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        """The direction to move in, given the sum of all ascents: that sum, unless overridden."""
        return Direction(ascent)

    def descend(
        self, passes: Passes, ascent: Ascent, vector: list[Tensor | None], length: Length, scales: Vector | None
    ) -> dict[str, Tensor]:
        """Run the second pass of a micro-batch and fill ``.grad``: the gradient of its loss, unless overridden.

        Args:
            passes: The passes of the micro-batch.
            ascent: What its first pass has found.
            vector: The direction, one tensor per parameter. It is emptied.
            length: Its length in the units of the radius.
            scales: Units of the radius, one tensor per parameter; None: Euclidean.

        Returns:
            Metrics.
        """
        return passes.descend(vector, self.rho, length=length, scales=scales)

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        if self.share == "micro-batch":
            return super().fill_step(micro_batches)
        return self._fill_together(micro_batches)

    def fill(self, passes: Passes) -> Step:
        return self._fill_together([passes])

    def _fill_together(self, micro_batches: Iterable[Passes]) -> Step:
        self._steps += 1
        begun, ascents = [], []
        total: list[Tensor | None] = []
        for passes in micro_batches:
            if passes.sharded and self.share != "global":
                raise ValueError(
                    f"{self.spec}: FSDP cuts the weights up between the processes, so all must share a perturbation; "
                    f"use share=global, or per_instance_sam"
                )
            if self.reuses_outputs and self.only and self.share == "micro-batch":  # else all graphs were in memory
                passes.keep_outputs(self.moving.names(passes.structure), self._reused)
            ascents.append(self.ascent(passes))
            # A closure that reads new data in each call would ascend on one batch and descend on another.
            if is_looked_at(self._steps):
                refuse_another_loss(passes, ascents[-1].loss)
            begun.append(passes)
            total = vectors.plus(total, ascents[-1].vector) if total else list(ascents[-1].vector)
            ascents[-1].vector.clear()
        if self.share == "global":
            total = begun[0].mean_over_processes(total)
        direction = self.direction(begun[0], total)
        length = vectors.length(direction.vector) if direction.length is None else direction.length
        steps = []
        for i, (passes, ascent) in enumerate(zip(begun, ascents, strict=True)):
            # Handed over to the last descent: its memory, as much as the model's, is free during that pass.
            vector = direction.vector if i == len(begun) - 1 else list(direction.vector)
            metrics = self.descend(passes, ascent, vector, length, direction.scales)
            steps.append(Step(ascent.loss, {**metrics, **ascent.metrics}))
        return Step.together(steps)
