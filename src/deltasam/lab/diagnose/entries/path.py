"""The loss on the straight line between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltasam.diagnostics import LossPath, loss_path, plot_path
from deltasam.lab.diagnose.diagnostic import Diagnostic, NotMeasuredError, Number, Plot
from deltasam.lab.diagnose.subject import Subject


class PathDiagnostic(Diagnostic[LossPath], name="path"):
    """From the first checkpoint to the second."""

    title = "Path: the loss between two checkpoints"
    order = 80
    share = 1 / 2

    def groups(self, subjects: Sequence[Subject]) -> dict[str, tuple[Subject, ...]]:
        """The first two."""
        if len(subjects) < 2:
            raise NotMeasuredError("there is one checkpoint; give two for the line between them")
        first, second = subjects[:2]
        return {f"{first.name} to {second.name}": (first, second)}

    def measure(self, *subjects: Subject) -> LossPath:
        """With the tokenizer and the labels of the first."""
        first, second = subjects
        return loss_path(first.model, second.model, first.closures(self.share))

    def numbers(self, result: LossPath) -> dict[str, Number]:
        """How far apart, and what is between."""
        return {
            "distance between the checkpoints": Number(result.distance),
            "barrier on the line": Number(result.barrier, None, "above the line between both losses"),
        }

    def answer(self, result: LossPath) -> str:
        """The barrier."""
        return f"On the straight line between the two the loss rises by at most {result.barrier:.3g}."

    def plots(self, results: Mapping[str, LossPath]) -> list[Plot]:
        """The line."""
        alt = "Mean loss on the straight line through two checkpoints"
        return [Plot("path", alt, lambda ax: plot_path(results, ax))]
