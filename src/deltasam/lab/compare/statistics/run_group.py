"""Runs that belong together: one row of a table, as it comes from the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.train.results import RunResult, by_setting


@dataclass(frozen=True)
class RunGroup:
    """Runs on the same data with the same options, which differ in method and seed alone, finished or still to come.

    Attributes:
        name: As the table shows it: ``CoLA``, ``MRPC, 30 % label noise``, the folder; no two groups have the same.
        metrics: What is reported, the main metric first; larger is better.
        results: The finished runs.
        labels: The column of every planned method, by what ``results`` call it: ``{"sam:rho=0.02": "sam"}``.
        seeds: The planned seeds of each column; where none are given, every seed that any run of the table has.
        searched: By spec, among what and on which data its hyper-parameters were chosen.
        options: What all runs have in common.
    """

    name: str
    metrics: tuple[str, ...]
    results: list[RunResult]
    labels: Mapping[str, str]
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    searched: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def by_method(
        cls,
        name: str,
        results: Sequence[RunResult],
        seeds: Mapping[str, tuple[int, ...]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> RunGroup:
        """Runs whose methods are the columns.

        Args:
            name: Of the group.
            results: The finished runs, at least one.
            seeds: By method, the planned seeds; None: those that are there.
            options: What all runs have in common.

        Raises:
            UserError: No runs, or runs with different main metrics.
        """
        if not results:
            raise UserError("no finished runs to compare; run at least one method")
        main = results[0].metric
        for run in results:
            if run.metric != main or main not in run.metrics:
                raise UserError(
                    f"{run.method}, seed {run.seed}, reports {run.metric!r} where others report {main!r}; compare "
                    "runs of one task only"
                )
        if seeds is None:
            methods = dict.fromkeys(run.method for run in results)
            seeds = {method: tuple(run.seed for run in results if run.method == method) for method in methods}
        return cls(name, (main,), list(results), {method: method for method in seeds}, seeds, options=options or {})

    def by_column(self) -> dict[str, dict[int, RunResult]]:
        """The runs by column and seed.

        Raises:
            UserError: No metric is named, or two methods have one label; a run has no label, lacks the main metric,
                or is there twice; or the runs are in several settings.
        """
        self._check_labels()
        settings = list(by_setting(self.results))
        if len(settings) > 1:
            raise UserError(f"runs in {len(settings)} settings ({settings[0]}, {settings[1]}, ...); compare each alone")
        runs: dict[str, dict[int, RunResult]] = {}
        for run in self.results:
            self._check_run(run)
            label = self.labels[run.method]
            by_seed = runs.setdefault(label, {})
            if run.seed in by_seed:
                raise UserError(f"{label}, seed {run.seed}, is there twice; keep one of the two runs")
            by_seed[run.seed] = run
        return runs

    def _check_labels(self) -> None:
        if not self.metrics:
            raise UserError(f"{self.name}: no metric is named; give at least the main one")
        for label, count in Counter(self.labels.values()).items():
            if count > 1:
                specs = " and ".join(spec for spec, other in self.labels.items() if other == label)
                raise UserError(f"{self.name}: {specs} are both labelled {label!r}; give each a label of its own")

    def _check_run(self, run: RunResult) -> None:
        if run.method not in self.labels:
            raise UserError(f"{self.name}: {run.method} has runs but no label; there are: {', '.join(self.labels)}")
        if self.metrics[0] not in run.metrics:
            known = ", ".join(run.metrics)
            raise UserError(f"{self.name}: {run.method}, seed {run.seed}, has no {self.metrics[0]!r}; it has: {known}")

    @property
    def missing(self) -> dict[str, list[int]]:
        """By column, the planned seeds without a finished run; columns that are whole are left out."""
        finished = {(self.labels[run.method], run.seed) for run in self.results}
        missing = {m: [seed for seed in seeds if (m, seed) not in finished] for m, seeds in self.seeds.items()}
        return {method: seeds for method, seeds in missing.items() if seeds}

    @property
    def missing_note(self) -> str:
        """What is not finished, in a sentence; empty where nothing is missing."""
        missing = self.missing
        if not missing:
            return ""
        planned, count = (sum(map(len, of.values())) for of in (self.seeds, missing))
        each = "; ".join(f"{m} with seed {', '.join(map(str, seeds))}" for m, seeds in missing.items())
        return f"Not finished: {count} of {planned} runs are missing ({each}). What they belong to is not judged."
