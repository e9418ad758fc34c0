"""What ``deltasam train`` leaves: ``config.yaml``, and once it is finished ``history.json`` with the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.compare.kept_examples import HISTORY
from deltasam.lab.folders.comparison import Gathered
from deltasam.lab.train.config import PROVENANCE
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.variant import short_spec


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
    def method(self) -> str:
        """Its short spec."""
        return short_spec(self.options["method"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.options["seed"])


def is_train(options: Mapping[str, Any]) -> bool:
    """Whether these are the options of a training."""
    return {"method", "seed", "model"} <= options.keys()


def read_training(folder: Path, options: Mapping[str, Any]) -> Training:
    """A training, finished or not.

    Raises:
        UserError: Its run cannot be read.
    """
    path = folder / HISTORY
    if not path.exists():
        return Training(folder, options, None)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return Training(folder, options, RunResult.from_json(text.strip()).labelled())


def pool(trainings: Iterable[Training]) -> tuple[list[Gathered], list[str]]:
    """Comparisons of the trainings on the same data with the same options, and what was left out.

    Nothing else is pooled: the data's contents and the versions of the libraries must be the same too. Wrong labels are
    drawn anew for each seed, so with label noise equal contents can be told for equal seeds only.
    """
    pools: list[list[Training]] = []
    notes = []
    for training in trainings:
        mates = next((p for p in pools if all(_together(training, other) for other in p)), None)
        if mates is None:
            pools.append([training])
        elif twin := next((t for t in mates if (t.method, t.seed) == (training.method, training.seed)), None):
            notes.append(f"{training.folder}: the same training as {twin.folder}; left out")
        else:
            mates.append(training)
    found = [_gathered(mates) for mates in pools if any(t.result for t in mates)]
    unfinished = [t for mates in pools if not any(t.result for t in mates) for t in mates]
    return found, [*notes, *(f"{t.folder}: the training is not finished; left out" for t in unfinished)]


def _together(one: Training, other: Training) -> bool:
    """Whether two trainings may differ in nothing that changes numbers but their method and seed."""
    if _common(one) != _common(other):
        return False
    noisy = bool(one.options.get("label_noise"))
    return (noisy and one.seed != other.seed) or _contents(one) == _contents(other)


def _common(training: Training) -> str:
    """The options that trainings of one comparison share, as comparable text."""
    options = {k: v for k, v in training.options.items() if k not in ("method", "seed", PROVENANCE)}
    versions = {k: v for k, v in _provenance(training).items() if k != "data_sha256"}
    return json.dumps([options, versions], sort_keys=True, default=str)


def _contents(training: Training) -> Any:
    return _provenance(training).get("data_sha256")


def _provenance(training: Training) -> Mapping[str, Any]:
    return training.options.get(PROVENANCE) or {}


def _gathered(mates: list[Training]) -> Gathered:
    planned: dict[str, tuple[int, ...]] = {}
    for training in mates:
        planned[training.method] = (*planned.get(training.method, ()), training.seed)
    results = [dataclasses.replace(t.result, method=t.method) for t in mates if t.result]
    options = {k: v for k, v in mates[0].options.items() if k not in ("method", "seed")}
    more = f" and {len(mates) - 1} more" if len(mates) > 1 else ""
    return Gathered(f"{mates[0].folder}{more}", sorted(results, key=lambda run: run.seed), planned, options)
