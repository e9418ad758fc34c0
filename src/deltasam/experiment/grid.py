"""Every method with every seed, one run after the other; what is finished is kept at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltasam.data import take
from deltasam.data.dataset import TextData
from deltasam.errors import UserError
from deltasam.experiment import processes
from deltasam.experiment.checkpoint import resume_run, save_when_due
from deltasam.experiment.config import TrainConfig
from deltasam.experiment.results import RunResult, write_atomically
from deltasam.experiment.training import Run, train_run

RESULTS, CHECKPOINT = "results.jsonl", "checkpoint.pt"


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison.

    Attributes:
        data: All of it; the run with seed s trains on ``take(data, train_size, s)``.
        config: How to train, the same for every run.
        methods: Full specs.
        seeds: One run of each method per seed.
        train_size: Training examples per run.
        checkpoint_every: Steps between checkpoints of the run at work; 0: every epoch.
    """

    data: TextData
    config: TrainConfig
    methods: list[str]
    seeds: list[int]
    train_size: int
    checkpoint_every: int = 0

    def cells(self) -> Iterator[tuple[int, str]]:
        """Seed and method of each run: all methods of a seed first, so that every prefix is paired."""
        return ((seed, method) for seed in self.seeds for method in self.methods)

    def check(self) -> None:
        """Make the first run and drop it: raises what would stop it, before anything is written or shown."""
        self._make_run(*next(self.cells()))

    def run(self, folder: Path, *, on_run: Callable[[Run], None], on_step: Callable[[Run], None]) -> list[RunResult]:
        """Do the runs that ``folder`` does not hold yet, beginning with the one that was interrupted.

        Args:
            folder: Gets ``results.jsonl``, a line per finished run, and meanwhile ``checkpoint.pt``.
            on_run: Called before the first step of each run.
            on_step: Called after each step.
        """
        results = processes.on_main(lambda: read_results(folder))
        done = {(r.seed, r.method) for r in results}
        for seed, method in self.cells():
            if (seed, method) not in done:
                run = self._make_run(seed, method)
                results.append(self._finish(run, folder / CHECKPOINT, on_run, on_step))
                if processes.is_main():
                    (folder / CHECKPOINT).unlink(missing_ok=True)  # first: the next run must never find it
                    write_atomically(folder / RESULTS, "".join(r.to_json() + "\n" for r in results))
        return results

    def _make_run(self, seed: int, method: str) -> Run:
        return Run(take(self.data, self.train_size, seed), self.config, method, seed)

    def _finish(
        self, run: Run, checkpoint: Path, on_run: Callable[[Run], None], on_step: Callable[[Run], None]
    ) -> RunResult:
        if processes.on_main(checkpoint.exists):
            resume_run(checkpoint, run)
        on_run(run)

        def after_step(run: Run) -> None:
            on_step(run)
            save_when_due(checkpoint, run, self.checkpoint_every)

        return train_run(run, on_step=after_step, on_evaluation=lambda run: None)


def read_results(folder: Path) -> list[RunResult]:
    """The finished runs in a folder; none when there is no file.

    Raises:
        UserError: The file cannot be read, or a line is no result.
    """
    path = folder / RESULTS
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); delete it and run again") from error
    return [RunResult.from_json(line) for line in lines if line]
