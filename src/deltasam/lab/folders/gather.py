"""Which folders hold what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.folders.compare_folder import is_compare, read_compare, settings_to_come
from deltasam.lab.folders.comparison import Gathered
from deltasam.lab.folders.output import CONFIG, read_options
from deltasam.lab.folders.reproduce_folder import RECORD, comparisons, read_table
from deltasam.lab.folders.train_folders import Training, is_train, pool, read_training
from deltasam.lab.reproduce.record import Record


@dataclass(frozen=True)
class Found:
    """What some folders hold.

    Attributes:
        comparisons: Of all folders, trainings that belong together pooled.
        table: Of the only folder, where that is one of ``reproduce``; its rows are among the comparisons too.
        notes: One line for each folder that was left out, and for settings without a run.
        whole: Whether all is from one folder of ``compare`` that is finished.
    """

    comparisons: list[Gathered]
    table: Record | None
    notes: list[str]
    whole: bool


def gather(folders: Sequence[Path]) -> Found:
    """Read output folders of ``compare``, ``train`` and ``reproduce``; what is none is noted and left out.

    Raises:
        UserError: None of them holds a finished run.
    """
    held = _Held()
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    for folder in distinct:
        held.read(folder)
    pooled, left_out = pool(held.trainings)
    comparisons, notes = [*held.compared, *held.tabled, *pooled], [*held.notes, *left_out]
    if not comparisons:
        raise UserError("; ".join(["none of the folders holds a finished run", *notes]))
    alone = len(distinct) == 1
    whole = alone and bool(held.compared) and not notes and not any(g.missing for g in comparisons)
    return Found(comparisons, held.tables[0] if alone and held.tables else None, notes, whole)


@dataclass
class _Held:
    """What was found so far."""

    compared: list[Gathered] = field(default_factory=list)
    tables: list[Record] = field(default_factory=list)
    tabled: list[Gathered] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, folder: Path) -> None:
        """Add what a folder holds, or the reason why nothing is added."""
        try:
            self._add(folder)
        except UserError as error:
            self.notes.append(f"{folder}: {error}; left out")

    def _add(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError("a file, no output folder" if folder.exists() else "there is no such folder")
        if (folder / RECORD).is_file():
            self.tables.append(read_table(folder))
            self.tabled += comparisons(folder, self.tables[-1])
        elif (folder / CONFIG).is_file():
            self._add_run(folder, read_options(folder))
        else:
            raise UserError(f"no output folder of compare, train or reproduce (no {CONFIG}, no {RECORD})")

    def _add_run(self, folder: Path, options: dict[str, Any]) -> None:
        if is_compare(options):
            begun = list(read_compare(folder, options))
            self.compared += begun
            if to_come := settings_to_come(options, len(begun)):
                self.notes.append(f"{folder}: no run is finished yet in {to_come} of its settings")
        elif is_train(options):
            self.trainings.append(read_training(folder, options))
        else:
            raise UserError("not by compare or train; of a table, give the folder that reproduce wrote to")
