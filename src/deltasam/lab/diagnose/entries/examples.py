"""Every example by itself: its loss, the norm of its gradient, and its curvature."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from deltasam.diagnostics import ExampleGeometry, example_geometry, plot_examples, plot_norms
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot
from deltasam.lab.diagnose.subject import Subject


class ExamplesDiagnostic(Diagnostic[ExampleGeometry], name="examples"):
    """Norms and curvatures of single examples."""

    title = "Examples: gradient norm and curvature of each"
    order = 20

    def measure(self, *subjects: Subject) -> ExampleGeometry:
        """In the order of the subject's rows."""
        (subject,) = subjects
        return example_geometry(subject.model, subject.closures(by_length=False))

    def numbers(self, result: ExampleGeometry) -> dict[str, Number]:
        """Medians, and how unequal the norms are."""
        curvatures = [c for c in result.curvatures if c is not None]
        norms, total = sorted(result.norms, reverse=True), sum(result.norms)
        tenth = max(1, len(norms) // 10)
        return {
            "median gradient norm": Number(statistics.median(norms)),
            "largest gradient norm": Number(norms[0]),
            "share of the largest tenth": Number(
                sum(norms[:tenth]) / total if total else math.nan, None, "of all norms"
            ),
            "median curvature along the gradient": Number(statistics.median(curvatures) if curvatures else math.nan),
        }

    def answer(self, result: ExampleGeometry) -> str:
        """How unequal they are."""
        share = self.numbers(result)["share of the largest tenth"].value
        return f"The tenth of the examples with the largest gradients has {share:.0%} of the sum of all gradient norms."

    def plots(self, results: Mapping[str, ExampleGeometry]) -> list[Plot]:
        """The norms' distribution, and norm over loss."""
        return [
            Plot("norms", "Histogram of the examples' gradient norms", lambda ax: plot_norms(results, ax)),
            Plot("examples", "Gradient norm over loss, a point per example", lambda ax: plot_examples(results, ax)),
        ]
