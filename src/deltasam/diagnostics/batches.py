"""The batches of a data set, each run as often as a measure wants, with the same dropout masks every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.closure import example_losses_of
from deltasam.core.passes import Closure, Passes
from deltasam.core.restore import Buffers, RandomState, WeightStore, accelerators
from deltasam.core.runtime import Runtime
from deltasam.core.sharding import is_sharded

Piece = tuple[int, slice]
"""Some consecutive examples of one batch: its number, and their rows."""


@contextmanager
def restoring_state(model: nn.Module) -> Iterator[None]:
    """Restore gradients (the same tensors), buffers and random state on exit, after an exception too."""
    gradients = [(p, p.grad) for p in model.parameters()]
    random_state, buffers = RandomState(accelerators(model.parameters())), Buffers(model.modules())
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        buffers.restore()
        random_state.restore()


class Batches:
    """A model on all its batches, and the losses there at the weights as they are.

    Every batch starts from the random state and the buffers that it had in a first run through all of them. Whoever
    makes one puts the model back afterwards (``restoring_state``).

    Args:
        owner: The measure that asks, for errors.
        model: In the mode, training or evaluation, that is meant.
        closures: One per batch; each runs one forward and returns one loss per example [n].

    Attributes:
        params: The trainable parameters, each once.
        losses: At the weights as they are, one tensor [n] per batch, in float64.

    Raises:
        RuntimeError: Gradients are switched off.
        ValueError: There is no closure or no trainable parameter, a loss is not one per example or not finite, or the
            weights are cut up between processes.
    """

    def __init__(self, owner: str, model: nn.Module, closures: Sequence[Closure]) -> None:
        self.owner, self.model, self._closures = owner, model, list(closures)
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._store, self._buffers = WeightStore(), Buffers(model.modules())
        if not torch.is_grad_enabled():
            raise RuntimeError(f"{owner} was called under torch.no_grad(); call it with gradients enabled")
        refuse_unmeasurable(owner, self._closures, self.params)
        self._starts: list[RandomState] = []
        self.losses: list[Tensor] = []
        with torch.no_grad():
            for number, closure in enumerate(self._closures):
                self._starts.append(RandomState(accelerators(model.parameters())))
                self._buffers.restore()
                self.losses.append(example_losses_of(closure(), owner).double())
                if not self.losses[-1].isfinite().all():
                    raise ValueError(f"{owner}: a loss of batch {number} is not finite at the weights as they are")

    def __len__(self) -> int:
        return len(self._closures)

    @property
    def examples(self) -> int:
        """How many there are in all batches."""
        return sum(map(len, self.losses))

    @property
    def loss(self) -> float:
        """Mean loss over all examples at the weights as they are."""
        return float(torch.cat(self.losses).mean())

    @property
    def everything(self) -> list[Piece]:
        """All examples of all batches."""
        return [(number, slice(0, len(losses))) for number, losses in enumerate(self.losses)]

    def passes(self, number: int) -> Passes:
        """The passes of one batch, as if it were the first time."""
        self._starts[number].restore()
        self._buffers.restore()
        return Passes(self.model, self._closures[number], Runtime(), self._store)

    def gradient(self, pieces: Sequence[Piece]) -> list[Tensor | None]:
        """Gradient of the pieces' mean loss at the weights as they are now, one tensor per parameter."""
        count = size(pieces)
        total: list[Tensor | None] = [None] * len(self.params)
        for number, rows in pieces:
            passes = self.passes(number)
            losses = example_losses_of(passes.first(), self.owner)
            total = vectors.plus(total, passes.grad(losses[rows].sum() / count))
        return total

    def rise(self, pieces: Sequence[Piece]) -> float:
        """How much higher the pieces' mean loss is at the weights as they are now than it was at first."""
        total = 0.0
        for number, rows in pieces:
            passes = self.passes(number)
            with torch.no_grad():
                losses = example_losses_of(passes.first(), self.owner).double()
            total += float((losses - self.losses[number])[rows].sum())
        return total / size(pieces)


def refuse_unmeasurable(owner: str, closures: Sequence[Closure], params: Sequence[Tensor]) -> None:
    """Check that there is something to measure at weights that can be moved.

    Raises:
        ValueError: There is no closure or no trainable parameter, or the weights are cut up between processes.
    """
    if not closures:
        raise ValueError(f"{owner}(closures=...): there is no closure in it; give one per batch")
    if not params:
        raise ValueError(f"{owner}: the model has no trainable parameter; set requires_grad=True on some")
    if any(map(is_sharded, params)):
        raise ValueError(f"{owner}: the weights are cut up between processes; measure in one process")


def size(pieces: Sequence[Piece]) -> int:
    """How many examples they are."""
    return sum(rows.stop - rows.start for _, rows in pieces)


def epsilon_of(params: Sequence[Tensor]) -> float:
    """Relative rounding error of the coarsest parameter's type."""
    return max(torch.finfo(p.dtype).eps for p in params)
