"""Every method with every seed in every setting; what is finished is kept at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deltasam.core.files import write_atomically
from deltasam.diagnostics.examples.csv_file import write_csv
from deltasam.lab.compare.after_training import measure_after
from deltasam.lab.compare.launchers import Cell, InSequence, Launcher, Standing, Watch, run_name
from deltasam.lab.data.dataset import Data
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.files import RESULTS, checkpoint_path, examples_path, read_results
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.checkpoint import resume_run, save_when_due
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run, train_run
from deltasam.lab.train.tracking import tracked


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison.

    Attributes:
        data: All of it; the run with seed s in a setting trains on ``setting.data_for(data, s)``.
        config: How to train, the same for every run.
        methods: Full specs.
        seeds: One run of each method per seed.
        settings: One comparison for each.
        checkpoint_every: Steps between checkpoints of a run at work; 0: every epoch.
        keeps_examples: Whether the table of each run's training examples is kept.
        after: Whether each final model is measured with its weights rounded, pruned and with noise too.
    """

    data: Data
    config: TrainConfig
    methods: list[str]
    seeds: list[int]
    settings: list[Setting]
    checkpoint_every: int = 0
    keeps_examples: bool = True
    after: bool = False

    def cells(self) -> Iterator[Cell]:
        """Each run: one setting after the other, in it all methods of a seed first, so that every prefix is paired."""
        return (Cell(seed, method, s) for s in self.settings for seed in self.seeds for method in self.methods)

    def check(self) -> None:
        """Make the first run and all data, and drop them: raises what would stop a run, before anything is written."""
        for setting in self.settings:
            setting.data_for(self.data, self.seeds[0])
        self._make_run(next(self.cells()))

    def run(
        self, folder: Path, *, watch: Watch, launcher: Launcher | None = None, trackers: Sequence[str] = ()
    ) -> list[RunResult]:
        """Do the runs that ``folder`` does not hold yet; those that were interrupted go on.

        Args:
            folder: Gets ``results.jsonl``, a line per finished run, ``examples/``, a table per finished run, and
                meanwhile checkpoints. Runs in it that are none of this grid's stay.
            watch: Told how far each run is, when it begins and after each step.
            launcher: Where the runs are done; one after the other in this process unless given.
            trackers: In which to follow each run, as ``check_trackers`` takes them.
        """
        launcher, order = launcher or InSequence(), list(self.cells())
        results = processes.on_main(lambda: self._held(folder))
        for cell in results:  # one that was stopped just after it was written
            _forget_checkpoint(folder, cell)
        work = partial(self._finish, folder if launcher.shares_disk else None, trackers)
        with closing(launcher.launch(work, [c for c in order if c not in results], watch)) as finished:
            for result in finished:
                results[_cell(result)] = dataclasses.replace(result, table="")
                if processes.is_main():
                    if self.keeps_examples:  # first: what results.jsonl says is finished has its table
                        write_csv(examples_path(folder, _cell(result)), result.table)
                    here = [*(c for c in order if c in results), *(c for c in results if c not in order)]
                    write_atomically(folder / RESULTS, "".join(results[cell].to_json() + "\n" for cell in here))
                _forget_checkpoint(folder, _cell(result))
        return [results[cell] for cell in order]

    def finished(self, folder: Path) -> list[RunResult]:
        """Its runs that a folder holds, in order."""
        results = self._held(folder)
        return [results[cell] for cell in self.cells() if cell in results]

    def _held(self, folder: Path) -> dict[Cell, RunResult]:
        """What a folder holds; results from before there were settings are of the only one."""
        found = read_results(folder)
        if len(self.settings) == 1:
            found = [dataclasses.replace(r, setting=r.setting or self.settings[0]) for r in found]
        return {_cell(r): r for r in found}

    def _make_run(self, cell: Cell) -> Run:
        data = cell.setting.data_for(self.data, cell.seed) if cell.setting else self.data
        return Run(data, self.config, cell.method, cell.seed)

    def _finish(self, folder: Path | None, trackers: Sequence[str], cell: Cell, watch: Watch) -> RunResult:
        run = self._make_run(cell)
        checkpoint = folder and checkpoint_path(folder, cell)
        if checkpoint and processes.on_main(checkpoint.exists):
            resume_run(checkpoint, run)
        watch(Standing.of(cell, run))

        def after_step(run: Run) -> None:
            watch(Standing.of(cell, run))
            tracking.send()
            if checkpoint:
                save_when_due(checkpoint, run, self.checkpoint_every)

        with tracked(run, run_name(cell), trackers, folder) as tracking:
            result = train_run(run, on_step=after_step, on_evaluation=lambda run: None)
        return dataclasses.replace(result, setting=cell.setting, after=measure_after(run) if self.after else {})


def _cell(result: RunResult) -> Cell:
    return Cell(result.seed, result.method, result.setting)


def _forget_checkpoint(folder: Path, cell: Cell) -> None:
    if processes.is_main():
        checkpoint_path(folder, cell).unlink(missing_ok=True)
