"""What the first pass of a step shows of each example; it costs nothing, since every method runs it."""

from __future__ import annotations

from torch import Tensor

from deltasam.core.closure import Output
from deltasam.core.passes import in_later_pass
from deltasam.lab.train.tasks.task import Task


class FirstPass:
    """The losses and predictions of one step at the weights as they are; later passes go by unseen.

    Args:
        task: Knows what an output predicts.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._seen: dict[str, Tensor] = {}

    def note(self, output: Output) -> None:
        """Look at what a pass returned."""
        if in_later_pass():
            return
        predictions = self._task.predictions(output)
        self._seen = {"losses": output.loss.detach()}
        if predictions is not None:
            self._seen["predictions"] = predictions.detach()

    def of_examples(self, metrics: dict[str, Tensor], rows: int, share: float) -> dict[str, Tensor]:
        """What is known of each example after the step, on the CPU: the names that ``ExampleRecorder.add`` takes.

        Args:
            metrics: Of the step.
            rows: How many of the examples count, from the first on.
            share: What the loss of each was multiplied with for the method.
        """
        found = dict(self._seen)
        if "weights" in metrics:
            found["weights"] = metrics["weights"]
        if "example_norms" in metrics:
            found["norms"] = metrics["example_norms"] / (share or 1.0)
        return {name: values[:rows].cpu() for name, values in found.items()}
