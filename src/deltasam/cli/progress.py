"""Progress bars for runs: how far, how long still, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from deltasam.experiment.training import Run


class RunProgress(Progress):
    """Steps of the run at work and, where there are several, runs in all; on stderr.

    Args:
        runs: How many runs there are in all.
        done: How many of them are finished.
    """

    def __init__(self, runs: int = 1, done: int = 0) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
        self._runs = self.add_task("runs", total=runs, completed=done, note="", visible=runs > 1)
        self._steps = self.add_task("", total=None, note="")
        self._done = done

    def begin(self, run: Run) -> None:
        """Show a run that is about to take its first, or next, step."""
        self.reset(self._steps, total=run.total_steps, completed=len(run.steps), note="")
        self.update(self._steps, description=f"{run.method.spec} seed {run.seed}")

    def advance_step(self, run: Run) -> None:
        """Show the step just taken."""
        self.update(self._steps, completed=len(run.steps), note=f"loss {run.steps[-1].loss:.4f}")
        fraction = len(run.steps) / run.total_steps
        if run.finished:
            self._done, fraction = self._done + 1, 0.0
        self.update(self._runs, completed=self._done + fraction)
