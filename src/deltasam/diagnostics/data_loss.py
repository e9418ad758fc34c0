"""The mean loss over all batches, anywhere in weight space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deltasam.core.closure import example_losses_of
from deltasam.core.passes import Closure
from deltasam.core.restore import WeightStore, moved
from deltasam.core.vectors import Vector
from deltasam.diagnostics.batches import refuse_unmeasurable, restoring_state


class DataLoss:
    """The mean loss over all examples of all batches, as a function of a step from the weights as they are.

    Every value has the same dropout masks, batch by batch; gradients, buffers and random state are left alone, and
    weights are put back from a copy.

    Args:
        owner: The measure that asks, for errors.
        model: In the mode, training or evaluation, that is meant.
        closures: One per batch; each runs one forward and returns one loss per example [n].
        params: What steps move, each once; the trainable parameters unless given.

    Raises:
        ValueError: There is no closure or nothing to move, or the weights are cut up between processes.
    """

    def __init__(
        self, owner: str, model: nn.Module, closures: Sequence[Closure], params: Sequence[nn.Parameter] | None = None
    ) -> None:
        self._owner, self._model, self._closures = owner, model, list(closures)
        self.params = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
        self._store = WeightStore()
        refuse_unmeasurable(owner, self._closures, self.params)

    def at(self, vector: Vector | None = None, factor: float = 1.0) -> float:
        """At the weights moved by ``factor * vector``, one tensor per parameter; None: at the weights as they are."""
        vector = [None] * len(self.params) if vector is None else vector
        with moved(self.params, vector, factor, self._store), restoring_state(self._model), torch.no_grad():
            losses = [example_losses_of(closure(), self._owner).double() for closure in self._closures]
            return float(sum(batch.sum() for batch in losses)) / sum(len(batch) for batch in losses)
