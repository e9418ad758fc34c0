"""Base class of the methods with one perturbation per batch that remember a moving average of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from deltasam.core.passes import Passes
from deltasam.core.vectors import Vector
from deltasam.method import Step
from deltasam.methods.bases.batch_perturbation import BatchPerturbation
from deltasam.methods.bases.gradient_state import averaged, check_vectors, refuse_sharded


class RemembersAverage(BatchPerturbation):
    """The average is the same on all processes, and in ``state_dict`` by parameter name.

    Args:
        model: The model to train.
        rho: Radius of the perturbation. 0 is plain training.
        share: Scope of a perturbation.
        only: Parameters that move, as text; None: all.
    """

    def __init__(self, model: nn.Module, *, rho: float, share: str, only: str | None = None) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
        self._average: dict[str, Tensor] = {}  # replaced, never modified in place: saved states keep their values

    def state_dict(self) -> dict[str, Any]:
        """The moving average of each parameter's gradient."""
        return {"gradient_average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved average.

        Raises:
            ValueError: The state was saved by another method or for another model.
        """
        self.check_state(state, ("gradient_average",))
        self._average = check_vectors(self, state["gradient_average"], "an average")

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        refuse_sharded(self, "the moving average")
        return super().fill_step(micro_batches)

    def average_over_processes(self, passes: Passes, ascent: Vector) -> list[Tensor | None]:
        """The ascent as it enters the average: the mean over all processes, which with share=global it is already."""
        return list(ascent) if self.share == "global" else passes.mean_over_processes(list(ascent))

    def update_average(self, passes: Passes, gradient: Vector, momentum: float) -> bool:
        """Let one more gradient into the average; whether it is finite, and so has entered."""
        before = self._average
        self._average = averaged(passes, before, gradient, momentum)
        return self._average is not before
