"""How close each method's gradient comes to that of one perturbation per example."""

from __future__ import annotations

import math
from collections.abc import Mapping

from deltasam.diagnosis.diagnostic import Diagnostic, Number, Plot, one_each
from deltasam.diagnosis.subject import Subject
from deltasam.diagnostics import Fidelity, fidelity, plot_fidelity
from deltasam.spec import short_spec

Results = list[Fidelity]
_BATCHES = 3


class FidelityDiagnostic(Diagnostic[Results], name="fidelity"):
    """Methods beside the exact one, with dropout."""

    title = "Fidelity: how close methods come to one perturbation per example"

    def measure(self, *subjects: Subject) -> Results:
        """On a few batches, in training mode."""
        (subject,) = subjects
        with subject.training():
            closures = subject.closures(by_length=False)[:_BATCHES]
            return fidelity(subject.model, closures, subject.settings.methods, rho=subject.settings.rho)

    def numbers(self, result: Results) -> dict[str, Number]:
        """The error of each method."""
        note = f"± standard deviation over {len(result[0].batches)} batches; 0: exact, 1: as plain training"
        return {f"error of {short_spec(r.method)}": Number(r.mean.error, r.spread.error, note) for r in result}

    def answer(self, result: Results) -> str:
        """The nearest one."""
        best = min(result, key=lambda r: math.inf if math.isnan(r.mean.error) else r.mean.error)
        if not best.mean.error < 1:
            return "No method comes nearer to one perturbation per example than plain training does."
        return (
            f"Of the methods measured {short_spec(best.method)} comes nearest to one perturbation per example (error "
            f"{best.mean.error:.2f}, where plain training has 1)."
        )

    def reading(self, result: Results) -> str:
        """The same for any result."""
        return (
            "Error and cosine are of what a method adds to the plain gradient, beside what one perturbation per "
            "example adds: error 0, cosine 1 and loss share 1 are exact; error 1 is no nearer than plain training, "
            f"above 1 is farther off. The spread is over {len(result[0].batches)} batches only. A close gradient is "
            "not yet a better model, and all methods are taken at one radius, which need not be the best of any."
        )

    def plots(self, results: Mapping[str, Results]) -> list[Plot]:
        """A picture for each checkpoint."""
        return one_each("fidelity", "Error, cosine and loss share of each method", results, plot_fidelity)
