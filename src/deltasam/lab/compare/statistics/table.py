"""Methods beside each other: rows (tasks, settings, folders) x methods. A comparison is a table with one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltasam.lab.compare.statistics.paired import Difference, Estimate
from deltasam.lab.compare.statistics.ranking import Ranking


@dataclass(frozen=True)
class Cell:
    """One method in one row. Estimates are over the seeds with a finite value, None without any."""

    method: str
    """The label of its column."""
    spec: str | None
    """With the hyper-parameters chosen for this row; None where the method is no part of it."""
    is_baseline: bool
    planned: tuple[int, ...] = ()
    """Seeds it is to be run with."""
    values: Mapping[int, float] = field(default_factory=dict)
    """The main metric by seed; empty without a finished run."""
    diverged: tuple[int, ...] = ()
    """Seeds whose main metric or loss is not finite."""
    metric: Estimate | None = None
    loss: Estimate | None = None
    ece: Estimate | None = None
    others: Mapping[str, Estimate | None] = field(default_factory=dict)
    """The mean of each further metric that is reported."""
    difference: Difference | None = None
    """To the baseline; None for the baseline itself and without a finite seed in common."""
    cost: float | None = None
    """Time per step over the baseline's; None where it is not known."""
    peak_memory_mib: float | None = None
    auroc: Mapping[str, Estimate] = field(default_factory=dict)
    """How well the examples' mean ``weight``, ``norm`` and ``loss``, as far as there are such, find the labels that are
    wrong: 0.5 is chance, below it these have the smaller ones. Empty where no noise was added."""
    average_precision: Mapping[str, Estimate] = field(default_factory=dict)
    """Likewise; chance is the share of wrong labels."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with a finished run."""
        return tuple(sorted(self.values))

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds of the planned runs that are not finished."""
        return () if self.spec is None else tuple(seed for seed in self.planned if seed not in self.values)

    @property
    def finished(self) -> bool:
        """Whether all its planned runs are there."""
        return bool(self.values) and not self.missing

    @property
    def judgement(self) -> str:
        """``better``, ``worse``, ``noise``, ``diverged``, or ``unknown`` (not judged, or nothing to judge noise by).

        A method that diverged is never better: the seeds it survived are not a fair sample of it.
        """
        if self.diverged:
            return "diverged"
        return self.difference.verdict if self.difference else "unknown"

    @property
    def verdict(self) -> str:
        """What a table shows of it.

        The judgement of a cell that is whole; ``baseline``; else ``absent`` (no part of the row), ``waiting`` (no run
        yet) or ``unfinished``.
        """
        if self.spec is None:
            return "absent"
        if not self.values:
            return "waiting"
        if not self.finished:
            return "unfinished"
        return "baseline" if self.is_baseline and not self.diverged else self.judgement


@dataclass(frozen=True)
class Row:
    """One comparison: a cell for every method of the table, in the table's order."""

    name: str
    metrics: tuple[str, ...]
    """What is reported, the main metric first."""
    cells: tuple[Cell, ...]

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def reference(self) -> Cell:
        """The baseline's cell."""
        return next(cell for cell in self.cells if cell.is_baseline)

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return self.reference.method

    @property
    def begun(self) -> list[Cell]:
        """The methods that have finished runs."""
        return [cell for cell in self.cells if cell.values]

    @property
    def others(self) -> list[Cell]:
        """These without the baseline."""
        return [cell for cell in self.begun if not cell.is_baseline]

    @property
    def whole(self) -> bool:
        """Whether every method of the table is there with all its runs: only then can they be ranked."""
        return all(cell.finished for cell in self.cells)

    @property
    def loss_name(self) -> str:
        """``NLL`` for classification, ``MSE`` for regression, which has no calibration error."""
        return "NLL" if any(cell.ece for cell in self.cells) else "MSE"


@dataclass(frozen=True)
class Column:
    """One method over the rows in which all methods are whole."""

    method: str
    average: Estimate | None
    """Over seeds, of the mean over rows; None below two whole rows, and where a run diverged."""
    difference: Difference | None
    """Of these averages to the baseline's."""
    cost: float | None
    """Median over all rows of the cost."""
    diverged: bool
    """In a whole row."""
    running: bool
    """Whether runs of the table are missing: then nothing is said about all rows together."""
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
class Table:
    """Every method against the baseline in every row and, of tasks with one baseline, over the rows."""

    baseline: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = ()
    """Empty where rows are not of one kind: then there are no averages."""
    ranking: Ranking = field(default_factory=lambda: Ranking({}, None, None))
    comparisons: int = 0
    """How many differences to the baseline the table holds once it is finished: the family of Holm's correction."""
    half_width: float | None = None
    """Median half-width of the 95 % intervals of the differences in single rows."""
    smallest: float | None = None
    """Median over them of the difference that the corrected test would have called one."""
    unit: str = "task"
    """What a row is."""

    @property
    def methods(self) -> list[str]:
        """The columns' labels."""
        return [cell.method for cell in self.rows[0].cells]

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
        return sum(len(cell.missing) for _, cell in self.cells)

    @property
    def planned_runs(self) -> int:
        """How many runs the finished table has."""
        return sum(len(cell.planned) for _, cell in self.cells if cell.spec is not None)
