"""Every method with every seed in every setting; each finished run is written at once."""

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
from deltasam.lab.compare.launchers import Launcher, ProgressCallback, RunKey, RunProgress, SequentialLauncher, run_name
from deltasam.lab.data.dataset import Data
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.files import RESULTS, checkpoint_path, examples_path, read_results
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.checkpoint import train_resumably
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison.

    Attributes:
        data: All of it; the run with seed s in a setting trains on ``setting.data_for(data, s)``.
        config: How to train, the same for every run.
        methods: Full specs.
        seeds: One run of each method per seed.
        settings: One comparison for each.
        checkpoint_every: Steps between checkpoints of a run; 0: every epoch.
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

    def run_keys(self) -> Iterator[RunKey]:
        """Each run: one setting after the other, in it all methods of a seed first, so that every prefix is paired."""
        return (RunKey(seed, method, s) for s in self.settings for seed in self.seeds for method in self.methods)

    def check(self) -> None:
        """Make the first run and all data, and drop them: raises what would stop a run, before anything is written."""
        for setting in self.settings:
            setting.data_for(self.data, self.seeds[0])
        self._make_run(next(self.run_keys()), trial=True)

    def run(
        self, folder: Path, *, watch: ProgressCallback, launcher: Launcher | None = None, trackers: Sequence[str] = ()
    ) -> list[RunResult]:
        """Do the runs that ``folder`` does not hold yet; those that were interrupted go on.

        Args:
            folder: Gets ``results.jsonl``, a line per finished run, ``examples/``, a table per finished run, and
                meanwhile checkpoints. Runs in it that are none of this grid's stay.
            watch: Told how far each run is, when it begins and after each step.
            launcher: Where the runs are done; one after the other in this process unless given.
            trackers: In which to follow each run, as ``check_trackers`` takes them.
        """
        launcher, order = launcher or SequentialLauncher(), list(self.run_keys())
        results = processes.on_main(lambda: self._held(folder))
        for key in results:  # one that was stopped just after it was written
            _forget_checkpoint(folder, key)
        work = partial(self._finish, folder if launcher.shares_disk else None, trackers)
        with closing(launcher.launch(work, [c for c in order if c not in results], watch)) as finished:
            for result in finished:
                results[_key(result)] = dataclasses.replace(result, table="")
                if processes.is_main():
                    if self.keeps_examples:  # first: what results.jsonl says is finished has its table
                        write_csv(examples_path(folder, _key(result)), result.table)
                    here = [*(c for c in order if c in results), *(c for c in results if c not in order)]
                    write_atomically(folder / RESULTS, "".join(results[key].to_json() + "\n" for key in here))
                _forget_checkpoint(folder, _key(result))
        return [results[key] for key in order]

    def finished(self, folder: Path) -> list[RunResult]:
        """The finished runs of this grid in a folder, in order."""
        results = self._held(folder)
        return [results[key] for key in self.run_keys() if key in results]

    def _held(self, folder: Path) -> dict[RunKey, RunResult]:
        """The finished runs in a folder; results from before there were settings belong to the only one."""
        found = read_results(folder)
        if len(self.settings) == 1:
            found = [dataclasses.replace(r, setting=r.setting or self.settings[0]) for r in found]
        return {_key(r): r for r in found}

    def _make_run(self, key: RunKey, *, trial: bool = False) -> Run:
        data = key.setting.data_for(self.data, key.seed) if key.setting else self.data
        return Run(data, self.config, key.method, key.seed, trial=trial)

    def _finish(self, folder: Path | None, trackers: Sequence[str], key: RunKey, watch: ProgressCallback) -> RunResult:
        run = self._make_run(key)
        result = train_resumably(
            run,
            folder and checkpoint_path(folder, key),
            every=self.checkpoint_every,
            name=run_name(key),
            trackers=trackers,
            on_progress=lambda run: watch(RunProgress.of(key, run)),
        )
        return dataclasses.replace(result, setting=key.setting, after=measure_after(run) if self.after else {})


def _key(result: RunResult) -> RunKey:
    return RunKey(result.seed, result.method, result.setting)


def _forget_checkpoint(folder: Path, key: RunKey) -> None:
    if processes.is_main():
        checkpoint_path(folder, key).unlink(missing_ok=True)
