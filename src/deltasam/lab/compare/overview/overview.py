"""Tasks x methods: what ``survey`` finds out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltasam.lab.compare.overview.ranking import Ranking
from deltasam.lab.compare.statistics.comparison import MethodSummary
from deltasam.lab.compare.statistics.paired import Difference, Estimate


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    method: str
    spec: str | None
    """With the hyper-parameters chosen for this task; None where the method is no part of the row."""
    planned: tuple[int, ...]
    """Seeds it is to be run with."""
    values: Mapping[int, float]
    """The main metric by seed."""
    summary: MethodSummary | None
    """None without a finished run."""
    others: Mapping[str, Estimate | None]
    """The mean of each further metric."""
    cost: float | None
    """Median over the seeds of its seconds per step over the baseline's."""
    is_baseline: bool

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds of the planned runs that are not finished."""
        return () if self.spec is None else tuple(seed for seed in self.planned if seed not in self.values)

    @property
    def finished(self) -> bool:
        """Whether all its planned runs are there."""
        return self.summary is not None and not self.missing

    @property
    def verdict(self) -> str:
        """What the cell shows.

        ``better``, ``worse`` or ``noise`` against the baseline, ``unknown`` (nothing to judge noise by),
        ``diverged``, ``baseline``, and of cells that are not whole ``absent`` (no part of the row), ``waiting``
        (no run yet) or ``unfinished``.
        """
        if self.spec is None:
            return "absent"
        if self.summary is None:
            return "waiting"
        if not self.finished:
            return "unfinished"
        if self.is_baseline and not self.summary.diverged:
            return "baseline"
        return self.summary.verdict


@dataclass(frozen=True)
class Row:
    """One task with a cell for every method of the table, in the table's order."""

    name: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def whole(self) -> bool:
        """Whether every method of the table is there with all its runs: only then can they be ranked."""
        return all(cell.finished for cell in self.cells)


@dataclass(frozen=True)
class Column:
    """One method over the tasks on which all methods are whole."""

    method: str
    average: Estimate | None
    """Over seeds, of the mean over tasks; None below two whole tasks, and where a run diverged."""
    difference: Difference | None
    """Of these averages to the baseline's."""
    cost: float | None
    """Median over all tasks of the cost."""
    diverged: bool
    """On a whole task."""
    running: bool
    """Whether runs of the table are missing: then nothing is said about all tasks together."""
    is_baseline: bool

    @property
    def verdict(self) -> str:
        """On the average, in the words of a cell; ``absent`` where there is no average."""
        if self.diverged:
            return "diverged"
        if self.running:
            return "unfinished"
        if self.average is None:
            return "absent"
        if self.is_baseline:
            return "baseline"
        return self.difference.verdict if self.difference else "unknown"


@dataclass(frozen=True)
class Overview:
    """A whole table: every method against the baseline on every task, and over the tasks."""

    baseline: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    ranking: Ranking
    comparisons: int = 0
    """How many differences to the baseline the table holds once it is finished: the p-values' Holm correction."""
    half_width: float | None = None
    """Median half-width of the 95 % intervals of the differences on single tasks."""
    smallest: float | None = None
    """Median over them of the difference that the corrected test would have called one."""
    unit: str = "task"
    """What a row is."""

    @property
    def methods(self) -> list[str]:
        """The columns' labels."""
        return [column.method for column in self.columns]

    @property
    def cells(self) -> list[tuple[Row, Cell]]:
        """Every cell with its row."""
        return [(row, cell) for row in self.rows for cell in row.cells]

    @property
    def running(self) -> bool:
        """Whether runs are missing."""
        return any(not cell.finished for _, cell in self.cells if cell.spec is not None)

    @property
    def whole_rows(self) -> list[Row]:
        """The rows that ranks and averages are over."""
        return [row for row in self.rows if row.whole]

    @property
    def missing_runs(self) -> int:
        """How many of the planned runs are not finished."""
        return sum(len(c.missing) for _, c in self.cells)

    @property
    def planned_runs(self) -> int:
        """How many runs the finished table has."""
        return sum(len(c.planned) for _, c in self.cells if c.spec is not None)
