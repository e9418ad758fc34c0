"""An output folder belongs to one experiment: never overwritten, continued only by the same options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from deltasam.core.files import write_atomically
from deltasam.errors import UserError
from deltasam.lab.train.config import check_same_options

CONFIG = "config.yaml"

_COMMANDS = {
    "train": {"method", "seed"},
    "compare": {"methods", "seeds"},
    "fidelity": {"warmup_steps"},
    "diagnose": {"checkpoints"},
}
"""Options by which the folder of a command is known."""


def check_folder(folder: Path, options: dict[str, Any]) -> bool:
    """Check, before any work, that an experiment can be kept in a folder. Nothing is written.

    Args:
        folder: May not exist yet.
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
    saved = read_options(folder)
    if (made := _command(saved)) != _command(options) and made:
        raise UserError(f"the folder {folder} is one of deltasam {made}; {remedy}")
    check_same_options({k: saved.get(k) for k in options}, options, f"the experiment in {folder}", remedy)
    return True


def create_run_folder(folder: Path, options: dict[str, Any]) -> None:
    """Write the resolved options, as YAML that ``--config`` takes, unless the same are there already.

    Raises:
        UserError: As ``check_folder``.
    """
    if not check_folder(folder, options):
        write_atomically(folder / CONFIG, yaml.safe_dump(options, allow_unicode=True))


def _command(options: dict[str, Any]) -> str | None:
    """Which command has these options; None: another one."""
    return next((command for command, own in _COMMANDS.items() if own <= options.keys()), None)


def _check_writable(folder: Path) -> None:
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"cannot write --output {folder}: {nearest} is a file, not a folder; choose another --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write --output {folder}: {nearest} is read-only; choose another --output")


def read_options(folder: Path) -> dict[str, Any]:
    """What ``create_run_folder`` wrote.

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
    return saved
