"""Progress bars for runs: how far, how long still, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deltasam.lab.compare.launchers import RunKey, RunProgress, run_name

if TYPE_CHECKING:
    from deltasam.lab.train.run import Run


class _Bars(Progress):
    """Bars on stderr, each with a note."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))

    def show_run(self, task: TaskID, run: RunProgress) -> None:
        """Show the step that a run is at, and its loss."""
        note = "" if run.loss is None else f"loss {run.loss:.4f}"
        self.update(task, total=run.total, completed=run.steps, note=note)


class RunBar(_Bars):
    """The steps of one run."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = self.add_task("", total=None, note="")

    def show(self, run: Run) -> None:
        """Show how far the run is."""
        key = RunKey(run.seed, run.variant)
        self.update(self._steps, description=run_name(key))
        self.show_run(self._steps, RunProgress.of(key, run))


class DiagnosisBar(_Bars):
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
        self.end(what)
        self._begun += 1

    def end(self, what: str) -> None:
        """All is measured; show what is left to do."""
        self.update(self._measurements, completed=self._begun, note=what)


class GridBars(_Bars):
    """All runs together, and below them the steps of each run in progress.

    Args:
        runs: How many runs there are in all.
        done: How many of them are finished.
    """

    def __init__(self, runs: int, done: int) -> None:
        super().__init__()
        self._runs = self.add_task("runs", total=runs, completed=done, note="")
        self._done = done
        self._fractions: dict[RunKey, float] = {}
        self._lines: dict[RunKey, TaskID] = {}

    def show(self, run: RunProgress) -> None:
        """Show how far a run is."""
        self._fractions[run.key] = 1.0 if run.finished else run.steps / run.total
        self.update(self._runs, completed=self._done + sum(self._fractions.values()))
        if run.key not in self._lines:
            self._lines[run.key] = self.add_task(run_name(run.key), note="")
        self.show_run(self._lines[run.key], run)
        if run.finished:
            self.remove_task(self._lines.pop(run.key))
