"""Choose hyper-parameters by runs on a part of the training data; what is reported is never looked at."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from deltasam.errors import UserError
from deltasam.experiment.results import RunResult


def candidates(methods: Mapping[str, Sequence[str]]) -> list[str]:
    """The specs that must be tried: those of methods with more than one."""
    return [spec for specs in methods.values() if len(specs) > 1 for spec in specs]


def choose(methods: Mapping[str, Sequence[str]], results: Sequence[RunResult]) -> dict[str, str]:
    """The best spec of each method by the mean of the main metric; of equals the first.

    A run that diverged counts as the worst there is.

    Raises:
        UserError: Every candidate of a method diverged.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for run in results:
        value = run.metrics[run.metric]
        found[run.method].append(-math.inf if math.isnan(value) else value)
    return {label: _best(label, specs, found) for label, specs in methods.items()}


def _best(label: str, specs: Sequence[str], found: Mapping[str, Sequence[float]]) -> str:
    if len(specs) == 1:
        return specs[0]
    means = {spec: statistics.fmean(found[spec]) for spec in specs}
    best = max(specs, key=means.__getitem__)
    if means[best] == -math.inf:
        raise UserError(f"{label}: every candidate diverged; put others into the preset: {', '.join(specs)}")
    return best
