"""Compare methods over seeds.

The design is paired: for one seed every method saw the same data order, head initialisation and dropout, so
differences are taken seed by seed. That removes the noise the seeds share, not the noise of having few.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.comparison import Comparison, MethodSummary
from deltasam.lab.compare.statistics.conclusion import conclusion
from deltasam.lab.compare.statistics.paired import (
    LEVEL,
    Estimate,
    effect_size,
    estimate,
    finite,
    holm,
    paired_difference,
    seeds_needed,
)
from deltasam.lab.train.results import RunResult, by_setting, relative_seconds

__all__ = ["Comparison", "MethodSummary", "by_method", "compare", "conclusion", "mean_of", "summarise", "values_of"]


def compare(results: Sequence[RunResult], baseline: str | None = None) -> Comparison:
    """Summarise every method and its paired difference to the baseline.

    Args:
        results: One run per method and seed; pairs may be missing.
        baseline: Spec or name of the method to compare with. By default ``erm``, else the first method.

    Raises:
        UserError: No runs, runs given twice, runs of several settings or with different main metrics, or an
            unknown baseline.
    """
    runs = by_method(results)
    reference = _find_baseline(list(runs), baseline)
    methods = [summarise(method, by_seed, runs[reference]) for method, by_seed in runs.items()]
    methods = [m if m.method != reference else dataclasses.replace(m, difference=None) for m in methods]
    return Comparison(results[0].metric, reference, tuple(_with_holm(methods)))


def by_method(results: Sequence[RunResult]) -> dict[str, dict[int, RunResult]]:
    """The runs by method and seed.

    Raises:
        UserError: No runs, runs given twice, or runs with different main metrics.
    """
    if not results:
        raise UserError("no finished runs to compare; run at least one method")
    settings = list(by_setting(results))
    if len(settings) > 1:
        raise UserError(f"runs in {len(settings)} settings ({settings[0]}, {settings[1]}, ...); compare each alone")
    runs: dict[str, dict[int, RunResult]] = {}
    for run in results:
        if run.metric != results[0].metric or run.metric not in run.metrics:
            raise UserError(
                f"{run.method}, seed {run.seed}, reports {run.metric!r} where others report "
                f"{results[0].metric!r}; compare runs of one task only"
            )
        if runs.setdefault(run.method, {}).setdefault(run.seed, run) is not run:
            raise UserError(f"{run.method}, seed {run.seed}, is there twice; keep one of the two runs")
    return runs


def _find_baseline(methods: list[str], wanted: str | None) -> str:
    for method in methods:
        if method == wanted:
            return method
    for method in methods:
        if method.split(":")[0] == (wanted or "erm"):
            return method
    if wanted is not None:
        raise UserError(f"baseline {wanted!r} is not among the methods; choose one of: {', '.join(methods)}")
    return methods[0]


def summarise(method: str, runs: dict[int, RunResult], baseline: dict[int, RunResult]) -> MethodSummary:
    """One method's runs over the seeds, compared with the baseline's; p-values are not corrected yet."""
    main = next(iter(runs.values())).metric
    metric, loss, ece = (values_of(runs, name) for name in (main, "loss", "ece"))
    memory = [run.peak_memory_mib for run in runs.values() if run.peak_memory_mib is not None]
    return MethodSummary(
        method=method,
        seeds=tuple(sorted(runs)),
        diverged=tuple(sorted((metric.keys() - finite(metric)) | (loss.keys() - finite(loss)))),
        metric=mean_of(metric),
        loss=mean_of(loss),
        ece=mean_of(ece),
        difference=paired_difference(finite(metric), finite(values_of(baseline, main))),
        relative_seconds=_relative_seconds(runs, baseline),
        peak_memory_mib=max(memory, default=None),
        auroc=_detection(runs, "auroc"),
        average_precision=_detection(runs, "average_precision"),
    )


def _detection(runs: dict[int, RunResult], measure: str) -> dict[str, Estimate]:
    """How well each ranking of the examples finds wrong labels, over the seeds in which that is defined."""
    found: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for by, detection in run.detection.items():
            if (value := getattr(detection, measure)) is not None:
                found.setdefault(by, {})[seed] = value
    return {by: mean for by, values in found.items() if (mean := mean_of(values))}


def values_of(runs: dict[int, RunResult], name: str) -> dict[int, float]:
    """A metric by seed, of the runs that have it."""
    return {seed: run.metrics[name] for seed, run in runs.items() if name in run.metrics}


def mean_of(values: dict[int, float]) -> Estimate | None:
    """The mean of the finite values; None without any."""
    numbers = list(finite(values).values())
    return estimate(numbers) if numbers else None


def _relative_seconds(runs: dict[int, RunResult], baseline: dict[int, RunResult]) -> float | None:
    """Mean over seeds of how many times as long the steps take."""
    ratios = [relative_seconds(runs[seed].steps, baseline[seed].steps) for seed in runs.keys() & baseline.keys()]
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.fmean(known) if known else None


def _with_holm(methods: list[MethodSummary]) -> Iterable[MethodSummary]:
    """Fill in what depends on how many methods are compared: each is one more chance to be fooled."""
    pvalues_of = {m.method: m.difference.p_value for m in methods if m.difference}
    tested = {method: p for method, p in pvalues_of.items() if p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    for m in methods:
        if m.difference and m.method in corrected:
            effect = effect_size(m.difference)
            needed = seeds_needed(effect, LEVEL / len(corrected)) if effect else None
            difference = dataclasses.replace(m.difference, holm=corrected[m.method], seeds_needed=needed)
            yield dataclasses.replace(m, difference=difference)
        else:
            yield m
