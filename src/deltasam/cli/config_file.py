"""Options from a YAML file: defaults that the command line overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import yaml

from deltasam.errors import UserError, did_you_mean
from deltasam.lab.train.config import COMMAND, PROVENANCE


def apply_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a YAML file the defaults of the running command.

    Raises:
        UserError: The file cannot be read, or has a key that is no option of the command.
    """
    if path is not None:
        options = {p.name for p in ctx.command.params if p.name is not None} - {"config"}
        values = {str(k).replace("-", "_"): v for k, v in _read(path).items() if k not in (COMMAND, PROVENANCE)}
        for key in values:
            if key not in options:
                raise UserError(f"{path}: unknown key {key!r}{did_you_mean(key, options)}; --help lists all options")
        ctx.default_map = {**(ctx.default_map or {}), **{k: _as_option(v) for k, v in values.items()}}
    return path


def _read(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"--config {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: write one option a line, as in 'epochs: 3'")
    return values


def _as_option(value: object) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value
