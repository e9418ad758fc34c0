"""What a launcher is, what it is given and what it reports; and the simplest one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from deltasam.lab.train.variant import short_spec

if TYPE_CHECKING:
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.train.results import RunResult
    from deltasam.lab.train.run import Run


class RunKey(NamedTuple):
    """What tells the runs of a grid apart."""

    seed: int
    method: str
    setting: Setting | None = None


def run_name(key: RunKey) -> str:
    """What to call a run."""
    name = f"{short_spec(key.method)} seed {key.seed}"
    return f"{name} {key.setting}" if key.setting else name


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. Small: it is sent between processes after every step.

    Attributes:
        key: Which run it is.
        steps: Steps done.
        total: Steps there are at most.
        loss: Of the last step; None before the first.
        finished: Whether no step is left.
    """

    key: RunKey
    steps: int
    total: int
    loss: float | None
    finished: bool

    @classmethod
    def of(cls, key: RunKey, run: Run) -> RunProgress:
        """How far the run with a key is."""
        loss = run.steps[-1].loss if run.steps else None
        return cls(key, len(run.steps), run.total_steps, loss, run.finished)


ProgressCallback = Callable[[RunProgress], None]
RunFn = Callable[[RunKey, ProgressCallback], "RunResult"]
"""Does one run. It can be pickled, so that it can be done elsewhere."""


class Launcher(Protocol):
    """Does the runs of a grid.

    A run is a function of its key, so where it is done, and beside which others, does not change its numbers.
    """

    shares_disk: ClassVar[bool]
    """Whether all runs see the same files: only then are there checkpoints to go on from."""

    def launch(self, work: RunFn, keys: Sequence[RunKey], watch: ProgressCallback) -> Generator[RunResult]:
        """Do the runs; give each result as soon as it is there, in any order.

        Args:
            work: Does the run of a key.
            keys: In the order in which the runs are begun.
            watch: Told, in this process, how far each run is.

        Raises:
            UserError: A run cannot be done; those in progress beside it are stopped.
        """
        ...


class SequentialLauncher:
    """One run after the other in this process: an error is shown where it is raised."""

    shares_disk: ClassVar[bool] = True

    def launch(self, work: RunFn, keys: Sequence[RunKey], watch: ProgressCallback) -> Generator[RunResult]:
        """Do one run after the other."""
        return (work(key, watch) for key in keys)
