"""Recognise output folders and collect their runs into groups that can be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.folders.config import read_config
from deltasam.lab.folders.files import CONFIG, RECORD, read_history, read_results
from deltasam.lab.folders.record import Record, read_record
from deltasam.lab.train.config import PROVENANCE
from deltasam.lab.train.results import RunResult, by_setting
from deltasam.lab.train.variant import short_spec


@dataclass(frozen=True)
class FolderContents:
    """What some folders hold.

    Attributes:
        groups: The runs of all folders, trainings that belong together in one group; methods have short specs.
        table: Of the only folder, where that is one of ``reproduce``; its rows are among the groups too.
        notes: One line for each folder that was left out, and for settings without a run.
        whole: Whether all is from one folder of ``compare`` that is finished.
    """

    groups: list[RunGroup]
    table: Record | None
    notes: list[str]
    whole: bool


@dataclass(frozen=True)
class Training:
    """The folder of one training.

    Attributes:
        folder: Where it is.
        options: With which it was begun.
        result: The run; None if it is not finished.
    """

    folder: Path
    options: Mapping[str, Any]
    result: RunResult | None

    @property
    def run(self) -> tuple[str, int]:
        """Its method, as a short spec, and its seed."""
        return short_spec(self.options["method"]), int(self.options["seed"])

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What else decided the numbers."""
        return self.options.get(PROVENANCE) or {}


def read_folders(folders: Sequence[Path]) -> FolderContents:
    """Read output folders of ``compare``, ``train`` and ``reproduce``; what is none is noted and left out.

    Raises:
        UserError: None of them holds a finished run.
    """
    compared: list[RunGroup] = []
    tabled: list[RunGroup] = []
    tables: list[Record] = []
    trainings: list[Training] = []
    notes: list[str] = []
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    for folder in distinct:
        try:
            command, options = _read_head(folder)
            if command == "reproduce":
                tables.append(read_record(folder / RECORD))
                tabled += _table_groups(folder, tables[-1])
            elif command == "compare":
                settings = list(_compare_groups(folder, options))
                compared += settings
                if to_come := _settings(options) - len(settings):
                    notes.append(f"{folder}: no run is finished yet in {to_come} of its settings")
            else:
                result = read_history(folder)
                trainings.append(Training(folder, options, result.labelled() if result else None))
        except UserError as error:
            notes.append(f"{folder}: {error}; left out")
    pooled, left_out = group_runs(trainings)
    groups, notes = [*compared, *tabled, *pooled], [*notes, *left_out]
    if not groups:
        raise UserError("; ".join(["none of the folders holds a finished run", *notes]))
    alone = len(distinct) == 1
    whole = alone and bool(compared) and not notes and not any(group.missing for group in groups)
    return FolderContents(groups, tables[0] if alone and tables else None, notes, whole)


def _read_head(folder: Path) -> tuple[str, dict[str, Any]]:
    """Which of the three commands made a folder, and with which options."""
    if not folder.is_dir():
        raise UserError("a file, no output folder" if folder.exists() else "there is no such folder")
    if (folder / RECORD).is_file():
        return "reproduce", {}
    if not (folder / CONFIG).is_file():
        raise UserError(f"no output folder of compare, train or reproduce (no {CONFIG}, no {RECORD})")
    command, options = read_config(folder)
    if command not in ("compare", "train"):
        raise UserError("not by compare or train; of a table, give the folder that reproduce wrote to")
    return command, options


def _compare_groups(folder: Path, options: Mapping[str, Any]) -> Iterator[RunGroup]:
    """A group for each setting of ``compare`` that has finished runs."""
    planned = {short_spec(method): tuple(options["seeds"]) for method in options["methods"]}
    results = [run.labelled() for run in read_results(folder)]
    settings = by_setting([run for run in results if run.seed in planned.get(run.method, ())])
    if not settings:
        raise UserError("no run is finished yet")
    several = len(settings) > 1 or _settings(options) > 1
    for setting, runs in settings.items():
        title = f"{folder}: {setting.title}" if several and setting else str(folder)
        yield RunGroup.by_method(title, runs, planned, options)


def _settings(options: Mapping[str, Any]) -> int:
    """How many settings a comparison has."""
    axes = (options["train_size"], options.get("label_noise"))
    sizes, noises = (len(values) if isinstance(values, list) else 1 for values in axes)
    return sizes * noises


def _table_groups(folder: Path, record: Record) -> Iterator[RunGroup]:
    """Each row of ``reproduce`` that has finished runs, with the chosen specs as methods."""
    for row in record.rows:
        runs = [dataclasses.replace(run.labelled(), metric=row.metrics[0]) for run in row.results]
        if runs:
            planned = {short_spec(spec): row.seeds[label] for spec, label in row.labels.items()}
            yield RunGroup.by_method(f"{folder}: {row.name}", runs, planned, row.options)


def group_runs(trainings: Iterable[Training]) -> tuple[list[RunGroup], list[str]]:
    """Groups of the trainings on the same data with the same options, and what was left out.

    Nothing else is put together: the data's contents and the versions of the libraries must be the same too. Wrong
    labels are drawn anew for each seed, so with label noise equal contents can be told for equal seeds only.
    """
    groups: list[list[Training]] = []
    notes = []
    for training in trainings:
        mates = next((group for group in groups if all(_comparable(training, other) for other in group)), None)
        if mates is None:
            groups.append([training])
        elif twin := next((other for other in mates if other.run == training.run), None):
            notes.append(f"{training.folder}: the same training as {twin.folder}; left out")
        else:
            mates.append(training)
    begun = []
    for mates in groups:
        if any(training.result for training in mates):
            begun.append(_training_group(mates))
        else:
            notes += [f"{training.folder}: the training is not finished; left out" for training in mates]
    return begun, notes


def _comparable(one: Training, other: Training) -> bool:
    """Whether two trainings may differ in nothing that changes numbers but their method and seed."""
    if _common(one) != _common(other):
        return False
    noisy = bool(one.options.get("label_noise"))
    same_data = one.provenance.get("data_sha256") == other.provenance.get("data_sha256")
    return same_data or (noisy and one.run[1] != other.run[1])


def _common(training: Training) -> str:
    """The options that trainings of one group share, as comparable text."""
    options = {k: v for k, v in training.options.items() if k not in ("method", "seed", PROVENANCE)}
    versions = {k: v for k, v in training.provenance.items() if k != "data_sha256"}
    return json.dumps([options, versions], sort_keys=True, default=str)


def _training_group(mates: Sequence[Training]) -> RunGroup:
    planned: dict[str, tuple[int, ...]] = {}
    for method, seed in (training.run for training in mates):
        planned[method] = (*planned.get(method, ()), seed)
    results = [dataclasses.replace(t.result, method=t.run[0]) for t in mates if t.result]
    options = {k: v for k, v in mates[0].options.items() if k not in ("method", "seed")}
    more = f" and {len(mates) - 1} more" if len(mates) > 1 else ""
    return RunGroup.by_method(f"{mates[0].folder}{more}", sorted(results, key=lambda run: run.seed), planned, options)
