"""The rise of the loss under a perturbation per group of examples, for all groups of a batch in two passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam.core.closure import example_losses_of
from deltasam.core.torch_internals.compiled import eager
from deltasam.diagnostics.batches import Batches
from deltasam.per_example.engine import Engine
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.perturbed_forward import Perturbed


class ExampleRises:
    """``L_i(w + rho g_i / |g_i|) - L_i(w)`` of every example i, or group of m, by the per-example engine.

    Args:
        batches: Whose losses.
        m: Examples per group; divides the batches that are asked for.
        rho: Radius.
        units: Of the radius, one tensor per parameter; None: 1.
    """

    def __init__(self, batches: Batches, m: int, rho: float, units: Sequence[Tensor] | None) -> None:
        self._batches, self._m, self._rho = batches, m, rho
        self._units = None if units is None else list(zip(batches.params, units, strict=True))
        self._engine = Engine(batches.model)

    def of(self, number: int) -> list[float]:
        """The mean rise of each group of a batch.

        Raises:
            NotCoveredError: It cannot be computed exactly; names the parameters.
            ValueError: The loss of one example depends on another.
        """
        passes, owner = self._batches.passes(number), self._batches.owner
        with eager():
            output, record = self._engine.first(passes)
            losses = example_losses_of(output, owner)
            gradients = self._engine.gradients(passes, record, losses, self._m)
            refuse_meeting_losses(owner, self._engine)
            self._bring_to_radius(gradients)
            before = losses.detach().double()
            del output, losses  # their graph is as large as the pass to come
            passes = self._batches.passes(number)
            perturbed = Perturbed(record, gradients)
            with perturbed:  # with a graph, in which it shows whose rows are picked
                rises = example_losses_of(passes.first(), owner).detach().double() - before
            perturbed.check_rows()
        return rises.view(-1, self._m).mean(1).tolist()

    def _bring_to_radius(self, gradients: ExampleGradients) -> None:
        if self._units is not None:
            gradients.multiply(self._units)
        norms = gradients.norms()
        if self._units is not None:
            gradients.multiply(self._units)
        gradients.scale(torch.where(norms > 0, self._rho / norms, 0.0))


def refuse_meeting_losses(owner: str, engine: Engine) -> None:
    """Raise unless each loss is of its own example, or group of examples, alone.

    Raises:
        ValueError: It is not.
    """
    if not engine.losses_apart:
        raise ValueError(
            f"{owner}: the loss of one example depends on the others of its batch, so it has no sharpness of its own; "
            f"let whole batches share a perturbation: m=None, or a multiple of the batch size"
        )
