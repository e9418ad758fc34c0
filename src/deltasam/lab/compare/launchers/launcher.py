"""What a launcher is, and how far a run is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from deltasam.lab.train.variant import short_spec

if TYPE_CHECKING:
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.train.results import RunResult
    from deltasam.lab.train.run import Run


class Cell(NamedTuple):
    """What tells the runs of a grid apart."""

    seed: int
    method: str
    setting: Setting | None = None


def run_name(cell: Cell) -> str:
    """What to call a run."""
    name = f"{short_spec(cell.method)} seed {cell.seed}"
    return f"{name} {cell.setting}" if cell.setting else name


@dataclass(frozen=True)
class Standing:
    """How far a run is. Small: it is sent between processes after every step.

    Attributes:
        cell: Which run it is.
        steps: Steps done.
        total: Steps there are at most.
        loss: Of the last step; None before the first.
        finished: Whether no step is left.
    """

    cell: Cell
    steps: int
    total: int
    loss: float | None
    finished: bool

    @classmethod
    def of(cls, cell: Cell, run: Run) -> Standing:
        """The standing of the run of a cell."""
        loss = run.steps[-1].loss if run.steps else None
        return cls(cell, len(run.steps), run.total_steps, loss, run.finished)


Watch = Callable[[Standing], None]
Work = Callable[[Cell, Watch], "RunResult"]
"""Does one run. It can be pickled, so that it can be done elsewhere."""


class Launcher(Protocol):
    """Does the runs of a grid.

    A run is a function of its cell, so where it is done, and beside which others, does not change its numbers.
    """

    shares_disk: ClassVar[bool]
    """Whether all runs see the same files: only then are there checkpoints to go on from."""

    def launch(self, work: Work, cells: Sequence[Cell], watch: Watch) -> Generator[RunResult]:
        """Do the work for every cell; give each result as soon as it is there, in any order.

        Args:
            work: What to do for a cell.
            cells: In the order in which they are begun.
            watch: Told, in this process, how far each run is.

        Raises:
            UserError: A run cannot be done; what is at work with it is stopped.
        """
        ...
