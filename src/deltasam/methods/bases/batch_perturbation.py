"""Methods with one perturbation for all examples of a batch, and what counts as the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative, one_of
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.core.repeats import is_looked_at, refuse_another_loss
from deltasam.core.vectors import Length, Vector
from deltasam.method import Method, Step

SHARES = ("micro-batch", "rank", "global")


@dataclass
class Ascent:
    """What the first pass of a micro-batch found.

    Attributes:
        loss: Mean loss [], detached.
        vector: Gradient of what is to be raised, one tensor per parameter.
        metrics: What else there is to tell.
    """

    loss: Tensor
    vector: list[Tensor | None]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Direction:
    """Where the weights move.

    Attributes:
        vector: One tensor per parameter.
        length: In the units of the radius; Euclidean unless given.
        scales: These units, one tensor per parameter.
    """

    vector: list[Tensor | None]
    length: Length | None = None
    scales: Vector | None = None


class BatchPerturbation(Method):
    """Gradient at ``w + rho * a / |a|``, where the ascent ``a`` is found from a whole batch.

    With gradient accumulation or several processes there is a choice of whose ascents are added up before the weights
    move (``docs/how-to/distributed.md``):

    - ``micro-batch``: nobody's. Each micro-batch of each process has its own; no communication.
    - ``rank``: those of all micro-batches of one process, given in one call of ``backward``.
    - ``global``: those of all processes, and of all micro-batches in the call. The ascent is averaged over the
      processes, which costs as much communication as the gradient.

    Args:
        model: The model to train.
        rho: Radius of the perturbation. 0 is plain training.
        share: Who shares a perturbation.
    """

    def __init__(self, model: nn.Module, *, rho: float, share: str) -> None:
        super().__init__(model)
        self.rho = nonnegative(type(self).__name__, "rho", rho)
        self.share = one_of(type(self).__name__, "share", share, SHARES)
        self._steps = 0

    @property
    def needs_all_micro_batches(self) -> bool:
        """Whether the micro-batches of a step must be given in one call."""
        return self.share != "micro-batch"

    def ascent(self, passes: Passes) -> Ascent:
        """Run the first pass: the gradient of the mean loss, unless overridden."""
        loss = loss_of(passes.first())
        return Ascent(loss.detach(), passes.grad(loss))

    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        """Where to go, given the sum of all ascents: along it, unless overridden."""
        return Direction(ascent)

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
            ascents.append(self.ascent(passes))
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
            # Given away for the last descent: its memory, as much as the model's, is free during that pass.
            vector = direction.vector if i == len(begun) - 1 else list(direction.vector)
            metrics = passes.descend(vector, self.rho, length=length, scales=direction.scales)
            steps.append(Step(ascent.loss, {**metrics, **ascent.metrics}))
        return Step.together(steps)
