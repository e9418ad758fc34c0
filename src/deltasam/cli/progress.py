"""Progress bars for runs: how far, how long still, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deltasam.lab.compare.launchers import Cell, run_name

if TYPE_CHECKING:
    from deltasam.lab.compare.launchers import Standing
    from deltasam.lab.train.run import Run


class _Bars(Progress):
    """Bars on stderr, each with a note."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))


class RunProgress(_Bars):
    """The steps of one run."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = self.add_task("", total=None, note="")

    def begin(self, run: Run) -> None:
        """Show a run that is about to take its first, or next, step."""
        self.reset(self._steps, total=run.total_steps, completed=len(run.steps), note="")
        self.update(self._steps, description=run_name(Cell(run.seed, run.method.spec)))

    def advance_step(self, run: Run) -> None:
        """Show the step just taken."""
        self.update(self._steps, completed=len(run.steps), note=_note(run.steps[-1].loss))


class DiagnosisProgress(_Bars):
    """What of a diagnosis is done, and what is measured now.

    Args:
        total: How many measurements there are.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self._measurements = self.add_task("measuring", total=total, note="")
        self._begun = 0

    def show(self, what: str) -> None:
        """Show a measurement that begins; those before it are done."""
        self.update(self._measurements, completed=self._begun, note=what)
        self._begun += 1

    def end(self, what: str) -> None:
        """All is measured; show what is left to do."""
        self.update(self._measurements, completed=self._begun, note=what)


class GridProgress(_Bars):
    """Runs in all, and below them the steps of each run at work.

    Args:
        runs: How many runs there are in all.
        done: How many of them are finished.
    """

    def __init__(self, runs: int, done: int) -> None:
        super().__init__()
        self._runs = self.add_task("runs", total=runs, completed=done, note="")
        self._done = done
        self._shares: dict[Cell, float] = {}
        self._lines: dict[Cell, TaskID] = {}

    def show(self, standing: Standing) -> None:
        """Show how far a run is."""
        cell = standing.cell
        self._shares[cell] = 1.0 if standing.finished else standing.steps / standing.total
        self.update(self._runs, completed=self._done + sum(self._shares.values()))
        if cell not in self._lines:
            self._lines[cell] = self.add_task(run_name(cell), note="")
        self.update(self._lines[cell], total=standing.total, completed=standing.steps, note=_note(standing.loss))
        if standing.finished:
            self.remove_task(self._lines.pop(cell))


def _note(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.4f}"
