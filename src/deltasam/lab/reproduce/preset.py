"""What a table of experiments consists of, read from a YAML file.

The presets beside this module are such files; a copy of one with another method in it is a new experiment.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from deltasam.errors import UserError
from deltasam.lab.reproduce.sources import TABLES
from deltasam.lab.train.config import SummaryOptions, TrainConfig
from deltasam.lab.train.variant import full_spec


@dataclass(frozen=True)
class RowPreset:
    """One row of the table.

    Attributes:
        name: As the table shows it.
        data: What ``lab/reproduce/sources.py`` finds it by: ``cola``, ``xsum``.
        train_size: Training examples per run, drawn anew for each seed; None: all.
        label_noise: Part of the training labels that is made wrong.
        noisy_selection: Whether the epoch, and hyper-parameters, are chosen by rows with as many wrong labels.
        options: Of the data, as ``lab/reproduce/sources.py`` takes them.
        training: Training options of this row alone.
        chosen_on: Another row, whose choice of hyper-parameters is taken over, to save its search; empty: a choice of
            its own.
    """

    name: str
    data: str
    train_size: int | None = None
    label_noise: float = 0.0
    noisy_selection: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    chosen_on: str = ""


@dataclass(frozen=True)
class SearchPreset:
    """How hyper-parameters are chosen.

    Attributes:
        seeds: One run of each candidate per seed; better none that is reported with.
        held_out: How much of the training data is set aside to judge candidates: a fraction, or a number of rows; has
            no meaning where a row has ``noisy_selection``, whose rows for it are there already.
        widen: How often, at most, a method gets one candidate more where its best is the largest or the smallest.
    """

    seeds: list[int]
    held_out: float = 0.2
    widen: int = 0


@dataclass(frozen=True)
class Preset:
    """A table of experiments.

    Attributes:
        table: Which kind: ``glue``, ``sts``, ``summarization``, ``noise``.
        title: Of the page.
        about: What it shows and where its numbers are from, in a few sentences.
        training: Training options of all rows.
        seeds: One run of each method per seed.
        search: How hyper-parameters are chosen where a method has several candidates.
        methods: Candidate specs of each column, by its label; ``erm`` is the baseline.
        rows: The rows.
    """

    table: str
    title: str
    about: str
    training: dict[str, Any]
    seeds: list[int]
    search: SearchPreset
    methods: dict[str, list[str]]
    rows: list[RowPreset]

    def __post_init__(self) -> None:
        full = {label: [full_spec(spec) for spec in specs] for label, specs in self.methods.items()}
        object.__setattr__(self, "methods", full)
        if self.table not in TABLES:
            raise UserError(f"table: {self.table} is none of {', '.join(TABLES)}")
        if "erm" not in self.methods:
            raise UserError("methods: the baseline erm is missing; add 'erm: [erm]'")
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise UserError(f"rows: {row.name} is there twice; give each a name of its own")
            if self.source(row).chosen_on:
                raise UserError(f"rows: {row.name} takes its choice from {row.chosen_on}, which has none of its own")
            self.config(row)

    def source(self, row: RowPreset) -> RowPreset:
        """The row whose search a row's hyper-parameters come from.

        Raises:
            UserError: It is not there.
        """
        if not row.chosen_on:
            return row
        for other in self.rows:
            if other.name == row.chosen_on:
                return other
        raise UserError(f"rows: {row.name} takes its hyper-parameters from {row.chosen_on}, which is not there; add it")

    def config(self, row: RowPreset, device: str = TrainConfig.device) -> TrainConfig:
        """The training options of a row.

        Raises:
            UserError: There is no such option, or a value cannot be used.
        """
        options = {**self.training, **row.training}
        unknown = options.keys() - {f.name for f in dataclasses.fields(TrainConfig)}
        if unknown:
            raise UserError(f"training: there is no option {', '.join(sorted(unknown))}")
        summaries = SummaryOptions(**options.pop("summaries", {}))
        return TrainConfig(**options, summaries=summaries, device=device)

    def with_training(self, **options: object) -> Preset:
        """The same with other training options, for all rows."""
        rows = [dataclasses.replace(row, training={**row.training, **options}) for row in self.rows]
        return dataclasses.replace(self, rows=rows)

    def only(self, names: list[str]) -> Preset:
        """The same with some of its rows.

        Raises:
            UserError: There is no such row.
        """
        there = [row.name for row in self.rows]
        for name in names:
            if name not in there:
                raise UserError(f"--row: there is no {name!r}; there are: {'; '.join(there)}")
        return dataclasses.replace(self, rows=[row for row in self.rows if row.name in names])


def tables() -> list[str]:
    """What can be reproduced."""
    return list(TABLES)


def scales() -> list[str]:
    """The sizes in which presets come."""
    return sorted({path.name.removesuffix(".yaml").split("-")[1] for path in _folder().iterdir()})


def preset_text(table: str, scale: str) -> str:
    """A preset as it is written.

    Args:
        table: ``glue``, ``sts``, ``summarization`` or ``noise``.
        scale: ``paper``, ``small``, or the path of a YAML file.

    Raises:
        UserError: There is no such preset.
    """
    if table not in TABLES:
        raise UserError(f"{table}: no table; give {', '.join(TABLES)}")
    path = _folder() / f"{table}-{scale}.yaml" if scale in scales() else Path(scale)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--scale {scale}: {reason}; give {', '.join(scales())}, or a YAML file like theirs") from error


def load_preset(table: str, scale: str) -> Preset:
    """A preset of this library, or one from a file, as ``preset_text`` finds it.

    Raises:
        UserError: There is none, or something in it cannot be used.
    """
    try:
        preset = _read(yaml.safe_load(preset_text(table, scale)))
    except yaml.YAMLError as error:
        raise UserError(f"--scale {scale}: no YAML: {' '.join(str(error).split())}") from error
    except UserError:
        raise
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(f"--scale {scale}: {error}; deltasam reproduce {table} --show prints a preset") from error
    if preset.table != table:
        raise UserError(f"--scale {scale}: it is for {preset.table}; deltasam reproduce {preset.table}")
    return preset


def _read(content: dict[str, Any]) -> Preset:
    everywhere = {"train_size": content.pop("train_size", None)}
    rows = [RowPreset(**{**everywhere, **row}) for row in content.pop("rows")]
    return Preset(search=SearchPreset(**content.pop("search")), rows=rows, **content)


def _folder() -> Any:
    return resources.files("deltasam.lab.reproduce") / "presets"
