"""One row of a table of experiments, as it comes from the runs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deltasam.errors import UserError
from deltasam.lab.train.results import RunResult


@dataclass(frozen=True)
class TableRow:
    """One task or setting: every method that is planned for it, and the runs that are finished.

    Attributes:
        name: As the table shows it: ``CoLA``, ``MRPC, 30 % label noise``.
        metrics: What is reported, the main metric first; larger is better.
        results: The finished runs of the final comparison; their steps are not needed.
        labels: The full spec of every planned method, and the column it stands in: ``{"sam:rho=0.02": "sam"}``.
        seeds: The planned seeds; where none are given, every seed that any run of the table has.
        searched: By full spec, among what and on which data its hyper-parameters were chosen.
    """

    name: str
    metrics: tuple[str, ...]
    results: list[RunResult]
    labels: dict[str, str]
    seeds: tuple[int, ...] = ()
    searched: Mapping[str, str] = field(default_factory=dict)

    def labelled(self) -> list[RunResult]:
        """The runs under their column's label, judged by the row's main metric, without their steps.

        Raises:
            UserError: A run of a method without a label, two methods with one label, or a run without the metric.
        """
        self._check_labels()
        return [self._labelled(run) for run in self.results]

    def _check_labels(self) -> None:
        if not self.metrics:
            raise UserError(f"{self.name}: no metric is named; give at least the main one")
        for label, count in collections.Counter(self.labels.values()).items():
            if count > 1:
                specs = " and ".join(spec for spec, other in self.labels.items() if other == label)
                raise UserError(f"{self.name}: {specs} are both labelled {label!r}; give each a label of its own")

    def _labelled(self, run: RunResult) -> RunResult:
        main = self.metrics[0]
        if run.method not in self.labels:
            raise UserError(f"{self.name}: {run.method} has runs but no label; there are: {', '.join(self.labels)}")
        if main not in run.metrics:
            raise UserError(
                f"{self.name}: {run.method}, seed {run.seed}, has no {main!r}; it has: {', '.join(run.metrics)}"
            )
        return dataclasses.replace(run, method=self.labels[run.method], metric=main, steps=[], evaluations=[])


def check_names(rows: Sequence[TableRow]) -> None:
    """Rows are told apart by their names.

    Raises:
        UserError: There is no row, or a name is there twice.
    """
    if not rows:
        raise UserError("no rows: there is nothing to put into a table")
    for name, count in collections.Counter(row.name for row in rows).items():
        if count > 1:
            raise UserError(f"{count} rows are called {name!r}; give each a name of its own")
