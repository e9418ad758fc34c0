"""What ``deltasam compare`` leaves: ``config.yaml``, and ``results.jsonl`` with a line for each finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.compare.grid import read_results
from deltasam.lab.folders.comparison import Gathered
from deltasam.lab.train.results import by_setting
from deltasam.lab.train.variant import short_spec


def is_compare(options: Mapping[str, Any]) -> bool:
    """Whether these are the options of a comparison."""
    return {"methods", "seeds", "train_size"} <= options.keys()


def read_compare(folder: Path, options: Mapping[str, Any]) -> Iterator[Gathered]:
    """A comparison for each setting that has finished runs.

    Raises:
        UserError: A file cannot be read, or no run is finished.
    """
    results = [run.labelled() for run in read_results(folder)]
    planned = {short_spec(method): tuple(options["seeds"]) for method in options["methods"]}
    settings = by_setting([run for run in results if run.seed in planned.get(run.method, ())])
    if not settings:
        raise UserError("no run is finished yet")
    several = len(settings) > 1 or _count(options["train_size"]) * _count(options.get("label_noise")) > 1
    for setting, runs in settings.items():
        title = f"{folder}: {setting.title}" if several and setting else str(folder)
        yield Gathered(title, runs, planned, options)


def settings_to_come(options: Mapping[str, Any], begun: int) -> int:
    """How many settings have no finished run yet."""
    return _count(options["train_size"]) * _count(options.get("label_noise")) - begun


def _count(values: Any) -> int:
    return len(values) if isinstance(values, list) else 1
