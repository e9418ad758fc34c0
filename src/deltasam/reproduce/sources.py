"""Where the data of each kind of table comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deltasam.data.dataset import Data


def _glue(name: str, folder: Path | None) -> Data:
    from deltasam.data.load import load_glue

    return load_glue(name, folder)


TABLES: dict[str, Callable[[str, Path | None], Data]] = {"glue": _glue}
"""By table: data by its name in a preset, from a folder or (None) from the hub."""
