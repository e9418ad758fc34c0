"""What training showed of its examples: which had the largest and smallest weights, gradients and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.train.results import ExampleRecord, RunResult

_SHOWN = 10


@dataclass(frozen=True)
class Ranked:
    """The two ends of one ranking.

    Attributes:
        by: What it is by: ``loss``.
        ends: By title, the examples, with their numbers, outermost first.
    """

    by: str
    ends: dict[str, list[tuple[float, ExampleRecord]]]


@dataclass(frozen=True)
class Inspection:
    """What one run of a method shows of its examples."""

    method: str
    seed: int
    rankings: list[Ranked]


def inspect(results: Sequence[RunResult]) -> list[Inspection]:
    """The first run of each method that kept examples, with every ranking it has."""
    first: dict[str, RunResult] = {}
    for run in results:
        if run.examples:
            first.setdefault(run.method, run)
    return [Inspection(run.method, run.seed, _rankings(run)) for run in first.values()]


def rankings_in(inspections: Sequence[Inspection]) -> list[str]:
    """By what any of them is ranked."""
    found = {ranked.by for inspection in inspections for ranked in inspection.rankings}
    return [by for by in NUMBERS if by in found]


def has_predictions(inspections: Sequence[Inspection]) -> bool:
    """Whether it is known of some example what the model took it for; not in results of older versions."""
    return any(
        example.prediction is not None
        for inspection in inspections
        for ranked in inspection.rankings
        for end in ranked.ends.values()
        for _, example in end
    )


def _rankings(run: RunResult) -> list[Ranked]:
    found = []
    for by in NUMBERS:
        ranked = [(getattr(example, by), example) for example in run.ranked(by)]
        half = (len(ranked) + 1) // 2
        ends = {f"Largest {by}": ranked[:half][:_SHOWN], f"Smallest {by}": ranked[half:][::-1][:_SHOWN]}
        if ranked:
            found.append(Ranked(by, {title: end for title, end in ends.items() if end}))
    return found
