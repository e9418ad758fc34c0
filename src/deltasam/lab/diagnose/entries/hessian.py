"""The curvature of the mean loss: largest eigenvalues and trace of its Hessian."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.diagnostics import HessianSpectrum, hessian_spectrum, plot_spectrum
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot
from deltasam.lab.diagnose.subject import Subject

_EIGENVALUES, _TOLERANCE, _TRACES = 3, 0.05, 4


class HessianDiagnostic(Diagnostic[HessianSpectrum], name="hessian"):
    """The upper end of the spectrum."""

    title = "Hessian: curvature of the mean loss"
    order = 30
    share = 1 / 16

    def measure(self, *subjects: Subject) -> HessianSpectrum:
        """Few eigenvalues, to five percent, on a part of the examples: each takes dozens of passes."""
        (subject,) = subjects
        return hessian_spectrum(
            subject.model,
            subject.closures(self.share),
            k=_EIGENVALUES,
            tolerance=_TOLERANCE,
            trace_samples=_TRACES,
            seed=subject.settings.seed,
        )

    def numbers(self, result: HessianSpectrum) -> dict[str, Number]:
        """Eigenvalues and trace."""
        note = f"on {result.examples} examples"
        found = {f"eigenvalue {i}": Number(value, None, note) for i, value in enumerate(result.eigenvalues, 1)}
        return {**found, "trace": Number(result.trace, result.trace_standard_error, note)}

    def answer(self, result: HessianSpectrum) -> str:
        """The largest eigenvalue."""
        return f"The largest eigenvalue of the loss's Hessian is {result.eigenvalues[0]:.3g}."

    def plots(self, results: Mapping[str, HessianSpectrum]) -> list[Plot]:
        """The eigenvalues."""
        return [Plot("hessian", "Largest eigenvalues of the Hessian by rank", lambda ax: plot_spectrum(results, ax))]
