"""Which folders hold what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasam.errors import UserError
from deltasam.experiment.folder import CONFIG, read_options
from deltasam.gather.compare_folder import is_compare, read_compare, settings_to_come
from deltasam.gather.comparison import Gathered
from deltasam.gather.reproduce_folder import RECORD, comparisons, read_table
from deltasam.gather.train_folders import Training, is_train, pool, read_training
from deltasam.reproduce.record import Record


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
    found: list[Gathered] = []
    trainings: list[Training] = []
    tables: list[Record] = []
    notes: list[str] = []
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    for folder in distinct:
        try:
            _read(folder, found, trainings, tables, notes)
        except UserError as error:
            notes.append(f"{folder}: {error}; left out")
    compared = bool(found) and not tables
    pooled, more = pool(trainings)
    notes += more
    found += pooled
    if not found:
        raise UserError("; ".join(["none of the folders holds a finished run", *notes]))
    alone = len(distinct) == 1
    whole = alone and compared and not notes and not any(g.missing for g in found)
    return Found(found, tables[0] if alone and tables else None, notes, whole)


def _read(
    folder: Path, found: list[Gathered], trainings: list[Training], tables: list[Record], notes: list[str]
) -> None:
    """Add what one folder holds.

    Raises:
        UserError: It holds no run, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise UserError("a file, no output folder" if folder.exists() else "there is no such folder")
    if (folder / RECORD).is_file():
        tables.append(read_table(folder))
        found += comparisons(folder, tables[-1])
        return
    if not (folder / CONFIG).is_file():
        raise UserError(f"no output folder of compare, train or reproduce (no {CONFIG}, no {RECORD})")
    options = read_options(folder)
    if is_compare(options):
        begun = list(read_compare(folder, options))
        found += begun
        if to_come := settings_to_come(options, len(begun)):
            notes.append(f"{folder}: no run is finished yet in {to_come} of its settings")
    elif is_train(options):
        trainings.append(read_training(folder, options))
    else:
        raise UserError("its runs are part of a table or of no comparison; give the folder that deltasam wrote to")
