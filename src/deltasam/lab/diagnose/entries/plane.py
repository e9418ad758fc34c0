"""The loss over the plane of two random directions."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.diagnostics import LossPlane, loss_plane, plot_plane
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot, one_each
from deltasam.lab.diagnose.subject import Subject

_POINTS = 9


class PlaneDiagnostic(Diagnostic[LossPlane], name="plane"):
    """A plane through the weights."""

    title = "Plane: the loss along two random directions"
    order = 70
    share = 1 / 8

    def measure(self, *subjects: Subject) -> LossPlane:
        """On a part of the examples: there are many points."""
        (subject,) = subjects
        return loss_plane(subject.model, subject.closures(self.share), points=_POINTS, seed=subject.settings.seed)

    def numbers(self, result: LossPlane) -> dict[str, Number]:
        """The loss at the border, over that of the weights."""
        note = f"at {result.coordinates[-1]:g} of the rows' norms, seed {result.seed}"
        return {"rise at the border of a random plane": Number(result.rise, None, note)}

    def answer(self, result: LossPlane) -> str:
        """The rise at the border."""
        return f"At the border of a plane of two random directions the loss differs by {result.rise:+.3g} on average."

    def plots(self, results: Mapping[str, LossPlane]) -> list[Plot]:
        """A picture for each checkpoint."""
        return one_each("plane", "Contours of the mean loss over two random directions", results, plot_plane)
