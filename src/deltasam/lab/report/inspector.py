"""What training showed of its examples: which had the largest and smallest weights, gradients and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.train.results import ExampleRecord, RunResult

_SHOWN = 10


@dataclass(frozen=True)
class Inspection:
    """What one run of a method shows of its examples.

    Attributes:
        method: Its spec.
        seed: Of the run.
        rankings: By what examples are ranked, the two ends of the ranking under their titles, outermost first.
    """

    method: str
    seed: int
    rankings: dict[str, dict[str, list[ExampleRecord]]]

    @property
    def predicted(self) -> bool:
        """Whether it is known of some example what the model took it for; not in results of older versions."""
        ends = (end for ranking in self.rankings.values() for end in ranking.values())
        return any(example.prediction is not None for end in ends for example in end)


def inspect_runs(results: Sequence[RunResult]) -> list[Inspection]:
    """The first run of each method that kept examples, with every ranking it has."""
    first: dict[str, RunResult] = {}
    for run in results:
        if run.examples:
            first.setdefault(run.method, run)
    return [Inspection(run.method, run.seed, _rankings(run)) for run in first.values()]


def _rankings(run: RunResult) -> dict[str, dict[str, list[ExampleRecord]]]:
    rankings = {}
    for by in NUMBERS:
        ranked = run.ranked(by)
        half = (len(ranked) + 1) // 2
        ends = {f"Largest {by}": ranked[:half][:_SHOWN], f"Smallest {by}": ranked[half:][::-1][:_SHOWN]}
        if ranked:
            rankings[by] = {title: end for title, end in ends.items() if end}
    return rankings
