"""How long the steps of a run take, be they all alike or, on a schedule, some with a perturbation and some without."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from deltasam.lab.train.results import StepRecord


def seconds_per_step(steps: Sequence[StepRecord]) -> float:
    """The mean time of a step, without the first, which pays for warming up.

    Of each kind of step, with a perturbation or without, the median counts: a step that was held up does not show.
    """
    times: dict[bool, list[float]] = defaultdict(list)
    for step in steps[1:] or steps:
        times[_perturbed(step)].append(step.seconds)
    return float(np.average([statistics.median(t) for t in times.values()], weights=[len(t) for t in times.values()]))


def relative_seconds(ours: Sequence[StepRecord], theirs: Sequence[StepRecord]) -> float | None:
    """How many times as long as another run's the steps take together; None where no step after the first is common.

    Steps are paired, since batches differ in length; of each kind of pair the median of the ratios counts.
    """
    pairs: dict[tuple[bool, bool], list[tuple[float, float]]] = defaultdict(list)
    their_steps = _by_number(theirs)
    both = [(step, their_steps[number]) for number, step in sorted(_by_number(ours).items()) if number in their_steps]
    for mine, other in both[1:]:
        pairs[_perturbed(mine), _perturbed(other)].append((mine.seconds, other.seconds))
    if not pairs:
        return None
    ratios = [statistics.median(mine / other for mine, other in kind) for kind in pairs.values()]
    weights = [len(kind) * statistics.median(other for _, other in kind) for kind in pairs.values()]
    return float(np.average(ratios, weights=weights))


def _perturbed(step: StepRecord) -> bool:
    return not math.isnan(step.perturbed_loss)


def _by_number(steps: Sequence[StepRecord]) -> Mapping[int, StepRecord]:
    return {step.step: step for step in steps}
