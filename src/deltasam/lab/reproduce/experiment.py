"""A table of experiments on disk: for each row a search and a comparison, each going on where it stopped.

What is shown follows from the finished runs; there is no other account of how far the table is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from deltasam.lab.compare.grid import Grid
from deltasam.lab.compare.launchers import Launcher, ProgressCallback
from deltasam.lab.data.dataset import Data
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.config import check_folder, create_run_folder, read_config
from deltasam.lab.folders.files import FINAL, SEARCH, read_results
from deltasam.lab.folders.record import Record
from deltasam.lab.reproduce.preset import Preset, RowPreset
from deltasam.lab.reproduce.search import candidates, choose, widened
from deltasam.lab.reproduce.sources import TABLES
from deltasam.lab.train.config import PROVENANCE
from deltasam.lab.train.provenance import machine, provenance
from deltasam.lab.train.results import RunResult

MADE_BY = "reproduce"
MACHINE = "machine"

Show = Callable[[str, int, int], AbstractContextManager[ProgressCallback]]
"""Shows a stage at work, given its title, how many runs it has and how many are finished."""


class Experiment:
    """The rows of a preset, each in a folder of its own.

    Args:
        preset: What to run.
        folder: Where.
        data_dir: The folder with the data; None: from the hub.
        device: What ``torch.device`` takes.

    Raises:
        UserError: Data cannot be had, or the folder holds something else.
    """

    def __init__(self, preset: Preset, folder: Path, data_dir: Path | None, device: str) -> None:
        self.preset, self.folder, self.device = preset, folder, device
        load = TABLES[preset.table]
        self._data = {row.name: load(row.data, data_dir, **row.options) for row in preset.rows}
        self._selection: dict[str, Data] = {}
        for row in preset.rows:
            check_folder(self._of(row), MADE_BY, self._options(row))

    def run(
        self,
        *,
        show: Show,
        launcher: Launcher | None = None,
        trackers: Sequence[str] = (),
        after_row: Callable[[], None],
    ) -> None:
        """Do every run that is not finished.

        Args:
            show: Shows each stage at work.
            launcher: Where the runs are done.
            trackers: In which to follow each run.
            after_row: Called when a row is finished.
        """
        for number, row in enumerate(self.preset.rows, 1):
            title = f"[{number}/{len(self.preset.rows)}] {row.name}"
            self._claim(row)
            source = self.preset.source(row)
            self._claim(source)
            while not self._is_chosen(source):  # what is found may ask for more candidates
                self._stage(
                    f"{title}: search", self._search(source), self._of(source) / SEARCH, show, launcher, trackers
                )
            self._stage(title, self._final(row), self._of(row) / FINAL, show, launcher, trackers)
            after_row()

    def runs(self, row: RowPreset, stage: str) -> list[RunResult]:
        """The finished runs of a row's own search, or of its comparison."""
        folder = self._of(row) / stage
        if stage == SEARCH:
            return self._search(row).finished(folder)
        return self._final(row).finished(folder) if self._is_chosen(row) else []

    def chosen(self, row: RowPreset) -> dict[str, str]:
        """The spec of each column, for a row whose search is finished."""
        source = self.preset.source(row)
        return choose(self._candidates(source), self.runs(source, SEARCH))

    def _is_chosen(self, row: RowPreset) -> bool:
        source = self.preset.source(row)
        return len(self.runs(source, SEARCH)) == len(list(self._search(source).run_keys()))

    def record(self) -> Record:
        """The table as far as it is."""
        preset = self.preset
        about = {"table": preset.table, "title": preset.title, "about": preset.about.strip()}
        facts = {row.name: self._facts(row) for row in preset.rows}
        stages = [(row, stage) for row in preset.rows for stage in (SEARCH, FINAL)]
        return Record(about, facts, {(row.name, stage): self.runs(row, stage) for row, stage in stages})

    def _facts(self, row: RowPreset) -> dict[str, Any]:
        """What decides the numbers of a row, and where they were made, if it is begun."""
        begun = check_folder(self._of(row), MADE_BY, options := self._options(row))
        saved = read_config(self._of(row))[1] if begun else options
        tried = self._candidates(self.preset.source(row))
        as_given = {"methods": tried, "seeds": self.preset.seeds}  # a file has lost the columns' order
        return {**saved, **as_given, "reported": list(self._reported(row))}

    def _stage(
        self, title: str, grid: Grid, folder: Path, show: Show, launcher: Launcher | None, trackers: Sequence[str]
    ) -> None:
        there, done = len(list(grid.run_keys())), len(grid.finished(folder))
        if done == there:
            return
        with show(title, there, done) as watch:
            grid.run(folder, watch=watch, launcher=launcher, trackers=trackers)

    def _candidates(self, row: RowPreset) -> dict[str, list[str]]:
        """The candidates of every method, as far as is known which are needed."""
        search = self.preset.search
        if not search.widen:
            return self.preset.methods
        found = [r for r in read_results(self._of(row) / SEARCH) if r.seed in search.seeds]
        return widened(self.preset.methods, found, search.widen)

    def _search(self, row: RowPreset) -> Grid:
        if row.name not in self._selection:
            data = self._data[row.name]
            self._selection[row.name] = data if row.noisy_selection else data.for_selection(self.preset.search.held_out)
        held_out = self._selection[row.name]
        grid = self._grid(row, held_out, candidates(self._candidates(row)), self.preset.search.seeds)
        return dataclasses.replace(grid, keeps_examples=False)  # so many runs, and only their scores are of interest

    def _final(self, row: RowPreset) -> Grid:
        return self._grid(row, self._data[row.name], list(self.chosen(row).values()), self.preset.seeds)

    def _grid(self, row: RowPreset, data: Data, methods: list[str], seeds: list[int]) -> Grid:
        return Grid(data, self.preset.config(row, self.device), methods, seeds, [self._setting(row, data)])

    def _setting(self, row: RowPreset, data: Data) -> Setting:
        return Setting(row.train_size or len(data.train), row.label_noise, row.noisy_selection)

    def _reported(self, row: RowPreset) -> tuple[str, ...]:
        """The metrics that the runs of a row are reported by."""
        data = self._data[row.name]
        return self._setting(row, data).data_for(data, self.preset.seeds[0]).reported

    def _of(self, row: RowPreset) -> Path:
        return self.folder / re.sub(r"\W+", "-", row.name.lower()).strip("-")

    def _options(self, row: RowPreset) -> dict[str, Any]:
        """What must be the same for the row to go on; seeds may be added."""
        return {
            "row": dataclasses.asdict(row),
            "training": dataclasses.asdict(self.preset.config(row, self.device)),
            "methods": self.preset.methods,
            "search": dataclasses.asdict(self.preset.search),
            PROVENANCE: provenance(self._data[row.name]),
        }

    def _claim(self, row: RowPreset) -> None:
        options = self._options(row)
        if not check_folder(self._of(row), MADE_BY, options):
            create_run_folder(self._of(row), MADE_BY, {**options, MACHINE: machine()})
