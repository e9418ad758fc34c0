"""An output folder belongs to one experiment: never overwritten, continued only by the same options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from deltasam.core.files import write_atomically
from deltasam.errors import UserError
from deltasam.lab.folders.files import CONFIG
from deltasam.lab.train.config import COMMAND, check_same_options

# Version 0.1.0 did not write the command: these of its options no other command had.
_OPTIONS_OF_0_1_0 = {
    "reproduce": {"row", "search"},  # before compare, whose options it has too
    "train": {"method", "seed"},
    "compare": {"methods", "seeds"},
    "fidelity": {"methods", "warmup_steps"},
    "diagnose": {"checkpoints", "diagnostics"},
}


def check_folder(folder: Path, command: str, options: dict[str, Any]) -> bool:
    """Check, before any work, that an experiment can be kept in a folder. Nothing is written.

    Args:
        folder: May not exist yet.
        command: ``train``, ``compare``, ...
        options: The experiment's; a saved experiment may have more, which are not compared.

    Returns:
        Whether the folder already holds the beginning of this experiment.

    Raises:
        UserError: The folder cannot be written, or holds something else.
    """
    _check_writable(folder)
    if not folder.exists() or all(p.name.endswith(".partial") for p in folder.iterdir()):
        return False
    remedy = "choose another --output"
    if not (folder / CONFIG).is_file():
        raise UserError(f"the folder {folder} already holds other files; {remedy}")
    made_by, saved = read_config(folder)
    if made_by not in (command, None):
        raise UserError(f"the folder {folder} is one of deltasam {made_by}; {remedy}")
    check_same_options({k: saved.get(k) for k in options}, options, f"the experiment in {folder}", remedy)
    return True


def create_run_folder(folder: Path, command: str, options: dict[str, Any]) -> None:
    """Write the command and its resolved options, as YAML that ``--config`` takes, unless they are there already.

    Raises:
        UserError: As ``check_folder``.
    """
    if not check_folder(folder, command, options):
        write_atomically(folder / CONFIG, yaml.safe_dump({COMMAND: command, **options}, allow_unicode=True))


def read_config(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Which command made a folder (None: nobody knows), and with which options.

    Raises:
        UserError: It cannot be read.
    """
    path = folder / CONFIG
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} ({error.__class__.__name__}); choose another --output") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path} is not the configuration of an experiment; choose another --output")
    command = saved.pop(COMMAND, None)
    if command is None:
        command = next((name for name, own in _OPTIONS_OF_0_1_0.items() if own <= saved.keys()), None)
    return command, saved


def _check_writable(folder: Path) -> None:
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"cannot write --output {folder}: {nearest} is a file, not a folder; choose another --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write --output {folder}: {nearest} is read-only; choose another --output")
