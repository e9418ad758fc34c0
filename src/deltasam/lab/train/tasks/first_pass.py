"""Losses and predictions of each example in the first pass, at no extra cost, since every method runs it."""

from __future__ import annotations

from torch import Tensor

from deltasam.core.closure import Output
from deltasam.core.passes import in_later_pass
from deltasam.lab.train.tasks.task import Task


class FirstPass:
    """Records losses and predictions of one step at the unperturbed weights; later passes are ignored.

    Args:
        task: The task, which computes predictions from an output.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._seen: dict[str, Tensor] = {}

    def note(self, output: Output) -> None:
        """Record the output of a pass, if it is the first."""
        if in_later_pass():
            return
        predictions = self._task.predictions(output)
        self._seen = {"losses": output.loss.detach()}
        if predictions is not None:
            self._seen["predictions"] = predictions.detach()

    def of_examples(self, metrics: dict[str, Tensor], rows: int, share: float) -> dict[str, Tensor]:
        """Values of each example after the step, on the CPU: the keyword arguments of ``ExampleRecorder.add``.

        Args:
            metrics: Metrics of the step.
            rows: Number of examples that count, starting with the first.
            share: Factor by which each loss was multiplied for the method.
        """
        found = dict(self._seen)
        if "weights" in metrics:
            found["weights"] = metrics["weights"]
        if "example_norms" in metrics:
            found["norms"] = metrics["example_norms"] / (share or 1.0)
        return {name: values[:rows].cpu() for name, values in found.items()}
