"""Choose hyper-parameters by runs on a part of the training data; what is reported is never looked at."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from deltasam.errors import UserError
from deltasam.lab.data.dataset import SELECTED, SELECTION
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.variant import full_spec


def candidates(methods: Mapping[str, Sequence[str]]) -> list[str]:
    """The specs that must be tried: those of methods with more than one."""
    return [spec for specs in methods.values() if len(specs) > 1 for spec in specs]


def widened(methods: Mapping[str, Sequence[str]], results: Sequence[RunResult], most: int) -> dict[str, list[str]]:
    """The candidates of each method, with more where the best one is the largest or the smallest of its numbers.

    Args:
        methods: The candidates to begin with; those of a method differ in one number.
        results: What has run.
        most: How many are added at most.
    """
    found, scores = {label: list(specs) for label, specs in methods.items()}, _scores(results)
    for label, specs in found.items():
        for _ in range(most if len(specs) > 1 else 0):
            if not scores.keys() >= set(specs):
                break
            following = _beyond(specs, _best(label, specs, scores))
            if following is None:
                break
            specs.append(following)
    return found


def _beyond(specs: Sequence[str], best: str) -> str | None:
    """The next candidate where the best is the last of its kind; None where it is not, or there is no next."""
    parts = [_NUMBER.split(spec) for spec in specs]  # every second one is a number
    if len({len(part) for part in parts}) > 1:
        return None
    differing = [i for i in range(len(parts[0])) if len({part[i] for part in parts}) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return None
    (place,) = differing
    by_value = sorted(parts, key=lambda part: float(part[place]))
    values, at = [float(part[place]) for part in by_value], ["".join(part) for part in by_value].index(best)
    if 0 < at < len(values) - 1 or 0 in values:
        return None
    further = values[-1] ** 2 / values[-2] if at else values[0] ** 2 / values[1]
    spec = "".join([*by_value[0][:place], f"{further:.3g}", *by_value[0][place + 1 :]])
    try:
        return full_spec(spec)
    except (ValueError, UserError):  # no share above 1, for instance
        return None


_NUMBER = re.compile(r"(?<==)([-+.\de]+)(?=[,@+]|$)")


def choose(methods: Mapping[str, Sequence[str]], results: Sequence[RunResult]) -> dict[str, str]:
    """The best spec of each method by the mean of the main metric; of equals the first.

    A run that diverged counts as the worst there is.

    Raises:
        UserError: Every candidate of a method diverged.
    """
    found = _scores(results)
    return {label: _best(label, specs, found) for label, specs in methods.items()}


def _scores(results: Sequence[RunResult]) -> dict[str, list[float]]:
    """What each candidate is judged by: where rows of their own choose the epoch, those rows, at that epoch."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in results:
        own = f"{run.metric.removesuffix(SELECTED)}_{SELECTION}{SELECTED}"
        value = run.metrics[own if own in run.metrics else run.metric]
        found[run.method].append(-math.inf if math.isnan(value) else value)
    return found


def _best(label: str, specs: Sequence[str], found: Mapping[str, Sequence[float]]) -> str:
    if len(specs) == 1:
        return specs[0]
    means = {spec: statistics.fmean(found[spec]) for spec in specs}
    best = max(specs, key=means.__getitem__)
    if means[best] == -math.inf:
        raise UserError(f"{label}: every candidate diverged; put others into the preset: {', '.join(specs)}")
    return best
