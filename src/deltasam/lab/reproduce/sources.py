"""Where the data of each kind of table comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.data.dataset import Data

# What the data sets are called on the hub, where that is not their own name.
_ON_HUB = {"xsum": "EdinburghNLP/xsum", "cnn_dailymail": "abisee/cnn_dailymail:3.0.0"}


def _glue(name: str, folder: Path | None) -> Data:
    from deltasam.lab.data.load import load_glue

    return load_glue(name, folder)


def _sts(name: str, folder: Path | None, *, contrast: Mapping[str, Any] | None = None, **options: Any) -> Data:
    from deltasam.lab.data.sentences import Contrast
    from deltasam.lab.data.sts import load_sts

    if folder is None:
        raise UserError(
            f"{name}: the sets of STS are read from files; give --data-dir, the folder that holds sts/ and glue/stsb/"
        )
    return load_sts(folder, contrast=Contrast(**(contrast or {})), **options)


def _summaries(name: str, folder: Path | None) -> Data:
    from deltasam.lab.data.summarization import load_summaries

    return load_summaries(_ON_HUB.get(name, name) if folder is None else folder / name)


def _noise(name: str, folder: Path | None, *, evaluation: float | None = None) -> Data:
    from deltasam.lab.data.load import load_data, load_glue

    data = load_data(name) if name.split(":")[0] == "demo" else load_glue(name, folder)
    # Development sets are too small to tell a point from noise: rows of the training set, which is large, then judge.
    return data if evaluation is None else data.for_selection(evaluation)


TABLES: dict[str, Callable[..., Data]] = {"glue": _glue, "sts": _sts, "summarization": _summaries, "noise": _noise}
"""By table: data by its name in a preset, from a folder or (None) from the hub; and its options there."""
