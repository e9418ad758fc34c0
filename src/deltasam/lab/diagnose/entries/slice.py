"""The loss along a random direction."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.diagnostics import LossSlice, loss_slice, plot_slice
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot
from deltasam.lab.diagnose.subject import Subject

_POINTS = 11


class SliceDiagnostic(Diagnostic[LossSlice], name="slice"):
    """A line through the weights."""

    title = "Slice: the loss along a random direction"
    order = 60
    share = 1 / 2

    def measure(self, *subjects: Subject) -> LossSlice:
        """The same direction for checkpoints of the same weights' shapes."""
        (subject,) = subjects
        return loss_slice(subject.model, subject.closures(self.share), points=_POINTS, seed=subject.settings.seed)

    def numbers(self, result: LossSlice) -> dict[str, Number]:
        """The loss at both ends, over that of the weights."""
        note = f"at {result.coordinates[-1]:g} of the rows' norms, seed {result.seed}"
        return {"rise along a random direction": Number(result.rise, None, note)}

    def answer(self, result: LossSlice) -> str:
        """The rise at the ends."""
        return f"A random step as long as the weights themselves changes the loss by {result.rise:+.3g}."

    def plots(self, results: Mapping[str, LossSlice]) -> list[Plot]:
        """All lines in one picture."""
        return [Plot("slice", "Mean loss along a random direction", lambda ax: plot_slice(results, ax))]
