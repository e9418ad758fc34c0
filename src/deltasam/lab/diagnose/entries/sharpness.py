"""How sharp the minimum is: worst case for groups of several sizes, in adaptive units, and on average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltasam.diagnostics import AverageSharpness, Sharpness, average_sharpness, plot_m_sharpness, sharpness
from deltasam.diagnostics.flatness.sharpness import CAUTION
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot
from deltasam.lab.diagnose.subject import Subject

_PAIRS = 3  # of noise and its opposite
_ADAPTIVE = 10  # its unit is the size of each weight, which is far below 1


@dataclass(frozen=True)
class AllSharpness:
    """One checkpoint.

    Attributes:
        worst: For groups of several sizes, the smallest first; of all examples last.
        adaptive: In units of the size of each weight, all examples together.
        average: For Gaussian noise on every weight; at the radius of the others it would be below rounding.
    """

    worst: tuple[Sharpness, ...]
    adaptive: Sharpness
    average: AverageSharpness


class SharpnessDiagnostic(Diagnostic[AllSharpness], name="sharpness"):
    """Sharpness in all its forms."""

    title = "Sharpness: how much the loss rises within a radius of the weights"
    order = 10
    share = 1 / 2

    def measure(self, *subjects: Subject) -> AllSharpness:
        """One step of ascent for groups of 1, of a batch, and of all examples."""
        (subject,) = subjects
        model, rho, size = subject.model, subject.settings.rho, subject.settings.batch_size
        closures = subject.closures(self.share, by_length=False)  # a group is to be a sample, not texts of equal length
        sizes = [m for m in dict.fromkeys((1, size)) if m < subject.used(self.share)]
        return AllSharpness(
            worst=tuple(sharpness(model, closures, rho=rho, m=m) for m in (*sizes, None)),
            adaptive=sharpness(model, closures, rho=_ADAPTIVE * rho, adaptive=True),
            average=average_sharpness(model, closures, samples=_PAIRS, seed=subject.settings.seed),
        )

    def numbers(self, result: AllSharpness) -> dict[str, Number]:
        """The rise of the loss in each form."""
        rho = result.worst[0].rho
        found = {
            f"worst case, {_group(s)}": Number(s.rise, s.standard_error, f"within rho = {rho:g}") for s in result.worst
        }
        adaptive, average = result.adaptive, result.average
        found["worst case, adaptive, all examples"] = Number(
            adaptive.rise, adaptive.standard_error, f"within rho = {adaptive.rho:g} of each weight's size"
        )
        note = f"noise of standard deviation {average.sigma:g} on every weight"
        return {**found, "average case": Number(average.rise, average.standard_error, note)}

    def answer(self, result: AllSharpness) -> str:
        """The rises against each example and against all of them."""
        one, everyone = result.worst[0], result.worst[-1]
        return (
            f"A step of length {one.rho:g} in weight space raises the mean loss of {one.loss:.3g} by {one.rise:.3g} "
            f"when it is chosen against each example by itself, by {everyone.rise:.3g} when it is one for all of them."
        )

    def reading(self, result: AllSharpness) -> str:
        """Those of the worst case and of the average."""
        return f"{result.worst[-1].reading.removesuffix(CAUTION)}{result.average.reading}"

    def plots(self, results: Mapping[str, AllSharpness]) -> list[Plot]:
        """The rise over the size of the groups."""
        worst = {name: result.worst for name, result in results.items()}
        alt = "Rise of the mean loss over the number of examples that share a perturbation"
        return [Plot("sharpness", alt, lambda ax: plot_m_sharpness(worst, ax))]


def _group(result: Sharpness) -> str:
    return "all examples" if result.m is None else f"m = {result.m}"
