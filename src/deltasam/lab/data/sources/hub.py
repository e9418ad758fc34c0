"""Read a data set from the Hugging Face hub."""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from deltasam.errors import UserError
from deltasam.lab.data.assemble import assemble, goal_of
from deltasam.lab.data.columns import choose_columns
from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.glue import GlueTask, task_on_hub
from deltasam.lab.data.source import DataSource, ReadOptions
from deltasam.lab.data.table import Table

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")
_EVALUATION = ("validation", "validation_matched", "dev", "test")  # the first of these that a data set has
_GLUE = "nyu-mll/glue"
_PATIENCE = 5  # seconds to wait for the hub: its own client retries for minutes


class HubSource(DataSource, name="hub"):
    """A data set of the Hugging Face hub: the fallback for every other name."""

    fallback = True

    def recognizes(self, name: str) -> bool:
        """Any name; whether the hub has it is determined on loading."""
        return True

    def load(self, name: str, options: ReadOptions) -> TextData:
        """Download the data set, or read it from the hub's cache."""
        options.refuse(name, "eval_data")
        return load_hub(name, options)


def load_hub(name: str, options: ReadOptions) -> TextData:
    """Read a hub data set: ``owner/name``, ``name``, each optionally with ``:config``; or a GLUE task: ``glue/cola``.

    Raises:
        UserError: The hub does not answer or does not have it, or a row cannot be used.
    """
    glue = task_on_hub(name)
    if glue is not None and not any(options.columns):
        glue.check_kind(name, options.task)
        return load_hub_glue(glue)
    train, held_out = hub_splits(name, name if glue is None else f"{_GLUE}:{glue.name}")
    columns = choose_columns(name, train.column_names, *options.columns)
    used = [column for column in (columns.text, columns.text_pair, columns.label) if column is not None]
    evaluation = options.eval_size if held_out is None else hub_table(f"{name} (evaluation)", held_out, used)
    return assemble(name, hub_table(f"{name} (train)", train, used), evaluation, columns, goal_of(options.task))


def load_hub_glue(task: GlueTask) -> TextData:
    """Read a GLUE task from the hub. Its test rows have no labels, so they are never used.

    Raises:
        UserError: The hub does not answer, or a row cannot be used.
    """
    name, columns = f"glue/{task.name}", task.layouts[0]
    splits = _download(name, f"{_GLUE}:{task.name}")
    used = [column for column in (columns.text, columns.text_pair, columns.label) if column is not None]

    def table(split: str) -> Table:
        where = f"{name} ({split})"
        if split not in splits:
            raise UserError(f"{where}: no such split, only {', '.join(splits)}; give the data as files")
        choose_columns(where, splits[split].column_names, columns.text, columns.text_pair, columns.label)
        return hub_table(where, splits[split], used)

    further = {split: table(f"validation_{split}") for split in task.further}
    return assemble(name, table("train"), table(task.hub_dev), columns, task.goal, further)


def hub_splits(name: str, address: str) -> tuple[Any, Any]:
    """The training split of a hub data set, and the evaluation split or None.

    Args:
        name: Name in messages.
        address: Name on the hub, and config: ``owner/name:config``.

    Raises:
        UserError: The hub does not answer or does not have it, or there is nothing to train on.
    """
    splits = _download(name, address)
    if "train" not in splits:
        raise UserError(f"{name}: no split called train, only {', '.join(splits)}; give the data as files")
    return splits["train"], next((splits[split] for split in _EVALUATION if split in splits), None)


def hub_table(name: str, split: Any, columns: Sequence[str]) -> Table:
    """Some columns of a split, called ``name`` in messages."""
    values = {column: list(split[column]) for column in columns}
    features = {column: getattr(split.features[column], "names", None) for column in columns}
    names = {column: tuple(found) for column, found in features.items() if found}
    return Table(name, values, range(1, len(split) + 1), "row", names)


def _download(name: str, address: str) -> Any:
    if not _NAME.fullmatch(address):
        raise UserError(f"{name}: no such file or folder; check the path given as --data")
    if not datasets.config.HF_HUB_OFFLINE and not _hub_answers():
        raise UserError(
            f"{name}: no such file or folder, and the hub ({datasets.config.HF_ENDPOINT}) cannot be reached; check "
            "the path or the network, or set HF_HUB_OFFLINE=1 to use the local cache"
        )
    repository, _, config = address.partition(":")
    try:
        return datasets.load_dataset(repository, config or None)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: no such file or folder, and no such data set from the hub ({reason}); check the name"
        ) from error


def _hub_answers() -> bool:
    try:
        urllib.request.urlopen(datasets.config.HF_ENDPOINT, timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        # A certificate that only the hub's client is configured to trust still means that something answers.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True
