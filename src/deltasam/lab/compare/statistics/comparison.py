"""Methods side by side: what ``compare`` finds out."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltasam.lab.compare.statistics.paired import Difference, Estimate


@dataclass(frozen=True)
class MethodSummary:
    """One method over its seeds. Estimates are over the seeds with a finite value, None without any."""

    method: str
    seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    """Seeds whose main metric or loss is not finite."""
    metric: Estimate | None
    loss: Estimate | None
    ece: Estimate | None
    difference: Difference | None
    """To the baseline; None for the baseline itself and without a finite seed in common."""
    relative_seconds: float | None
    """Seconds per step over the baseline's, the steps paired by batch; None without steps in common."""
    peak_memory_mib: float | None
    auroc: dict[str, Estimate] = field(default_factory=dict)
    """How well the examples' mean ``weight``, ``norm`` and ``loss``, as far as there are such, find the labels that are
    wrong: 0.5 is chance, below it these have the smaller ones. Empty where no noise was added."""
    average_precision: dict[str, Estimate] = field(default_factory=dict)
    """Likewise; chance is the share of wrong labels."""

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``noise``, ``diverged``, or ``unknown`` (nothing to judge noise by).

        A method that diverged is never better: the seeds it survived are not a fair sample of it.
        """
        if self.diverged:
            return "diverged"
        return self.difference.verdict if self.difference else "unknown"


@dataclass(frozen=True)
class Comparison:
    """Every method against the baseline, in the order the methods were run."""

    metric: str
    baseline: str
    methods: tuple[MethodSummary, ...]

    @property
    def others(self) -> list[MethodSummary]:
        """Every method but the baseline."""
        return [m for m in self.methods if m.method != self.baseline]

    @property
    def loss_name(self) -> str:
        """``NLL`` for classification, ``MSE`` for regression, which has no calibration error."""
        return "NLL" if any(m.ece for m in self.methods) else "MSE"
