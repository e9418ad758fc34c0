"""What each method costs here."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.diagnostics import Cost, at_radius, cost, plot_cost
from deltasam.diagnostics.fidelity import spec_with_rho
from deltasam.lab.compare.statistics.formatting import gibibytes
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot, one_each
from deltasam.lab.diagnose.subject import Subject
from deltasam.spec import method_names

_ROUNDS = 3


class CostDiagnostic(Diagnostic[Cost], name="cost"):
    """Time and memory of each method, with dropout."""

    title = "Cost: time and memory of each method"
    order = 100

    def measure(self, *subjects: Subject) -> Cost:
        """On one batch, in training mode."""
        (subject,) = subjects
        with subject.training():
            closures = subject.closures(by_length=False)[:1]
            at_rho = [at_radius(name, subject.settings.rho) for name in method_names()]
            return cost(subject.model, closures, subject.settings.methods or at_rho, rounds=_ROUNDS)

    def numbers(self, result: Cost) -> dict[str, Number]:
        """The ratio of each method over a plain forward and backward."""
        return {
            f"time of {spec_with_rho(m.method)} over plain": Number(m.ratio, None, _memory(m.peak_memory_mib))
            for m in result.methods
        }

    def answer(self, result: Cost) -> str:
        """The range of the ratios."""
        ranked = sorted(result.methods, key=lambda m: m.ratio)
        low, high = ranked[0], ranked[-1]
        return (
            f"A step's gradients take {low.ratio:.2f} times as long as in plain training "
            f"({spec_with_rho(low.method)}) to {high.ratio:.2f} times ({spec_with_rho(high.method)})."
        )

    def reading(self, result: Cost) -> str:
        """As the measure puts it, and what was not measured."""
        refused = [f"Not measured: {spec_with_rho(spec)}, {reason}" for spec, reason in result.refused.items()]
        return " ".join([result.reading, *refused])

    def plots(self, results: Mapping[str, Cost]) -> list[Plot]:
        """A picture for each checkpoint."""
        return one_each("cost", "Time of each method, forward, backward and the rest", results, plot_cost)


def _memory(mib: float | None) -> str:
    return "" if mib is None else f"peak memory {gibibytes(mib)} GiB"
