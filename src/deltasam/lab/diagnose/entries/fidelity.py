"""How close each method's gradient comes to that of one perturbation per example."""

from __future__ import annotations

import math
from collections.abc import Mapping

from deltasam.diagnostics import Fidelity, fidelity, plot_fidelity
from deltasam.diagnostics.fidelity import rho_of, spec_with_rho
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot, one_each
from deltasam.lab.diagnose.subject import Subject

Results = list[Fidelity]
_BATCHES = 3
_SAME_DISTANCE = 0.01
"""Relative difference up to which two distances are one: rounding of 32-bit weights is far below."""


class FidelityDiagnostic(Diagnostic[Results], name="fidelity"):
    """Methods beside the exact one, with dropout."""

    title = "Fidelity: how close methods come to one perturbation per example"
    order = 90

    def measure(self, *subjects: Subject) -> Results:
        """On a few batches, in training mode."""
        (subject,) = subjects
        with subject.training():
            closures = subject.closures(by_length=False)[:_BATCHES]
            return fidelity(subject.model, closures, subject.settings.methods, rho=subject.settings.rho)

    def numbers(self, result: Results) -> dict[str, Number]:
        """The error of each method."""
        note = f"± standard deviation over {len(result[0].batches)} batches; 0: exact, 1: as plain training"
        return {f"error of {spec_with_rho(r.method)}": Number(r.mean.error, r.spread.error, note) for r in result}

    def answer(self, result: Results) -> str:
        """The nearest one."""
        best = min(result, key=lambda r: math.inf if math.isnan(r.mean.error) else r.mean.error)
        exact = f"one perturbation of length {best.exact_rho:g} per example"
        if not best.mean.error < 1:
            return f"No method comes nearer to {exact} than plain training does."
        return (
            f"Of the methods measured {spec_with_rho(best.method)} comes nearest to {exact} (error "
            f"{best.mean.error:.2f}, where plain training has 1)."
        )

    def reading(self, result: Results) -> str:
        """What the numbers are, and at which radius each method was taken."""
        return (
            "Error and cosine are of what a method adds to the plain gradient, beside what one perturbation per "
            "example adds: error 0, cosine 1 and loss share 1 are exact; error 1 is no nearer than plain training, "
            f"above 1 is farther off. The spread is over {len(result[0].batches)} batches only. {_radii(result)} A "
            "close gradient is not yet a better model, and no radius here need be the best of a method."
        )

    def plots(self, results: Mapping[str, Results]) -> list[Plot]:
        """A picture for each checkpoint."""
        return one_each("fidelity", "Error, cosine and loss share of each method", results, plot_fidelity)


def _radii(results: Results) -> str:
    """At which radius each method was taken."""
    exact = results[0].exact_rho
    rhos = {spec_with_rho(r.method): rho_of(r.method) for r in results}
    others = [spec for spec, rho in rhos.items() if rho not in (exact, None)]
    farther = [  # not so for NaN: it moved no weight
        f"{spec} moved the weights {r.mean.distance:.2g} times as far"
        for r, (spec, rho) in zip(results, rhos.items(), strict=True)
        if rho == exact and abs(r.mean.distance - 1) > _SAME_DISTANCE
    ]
    said = f"rho is {exact:g} in the exact perturbations and in every method that has one"
    said += f", but for {', '.join(others)}: part of their error is that they go another distance." if others else "."
    return f"{said} Not every rho is a distance: {', '.join(farther)}." if farther else said
