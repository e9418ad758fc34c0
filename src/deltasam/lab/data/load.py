"""Load data from any source."""

from __future__ import annotations

import os
from pathlib import Path

from deltasam.errors import UserError
from deltasam.lab.data import sources  # noqa: F401  (fills the registry)
from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.glue import GlueTask, find_task, known_task
from deltasam.lab.data.source import DataSource, ReadOptions
from deltasam.lab.data.sources.folder import load_folder
from deltasam.lab.data.sources.hub import load_hub_glue


def load_data(
    source: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    eval_data: str | os.PathLike[str] | None = None,
    eval_size: float = 0.2,
    task: str = "classification",
) -> TextData:
    """Read text with labels, check every row, and split it into training and evaluation.

    Args:
        source: ``demo`` or ``demo:search``; a table file (``.csv``, ``.tsv``, ``.jsonl``, ``.json``, each also
            with ``.gz``, or ``.parquet``); a folder in GLUE layout; ``glue/cola`` and the like for a task of GLUE
            from the hub; or the name of another hub data set.
        text: The column with the text. Default: ``text`` or ``sentence``, if the table has exactly one of them.
        text_pair: The column with the second text, for pairs.
        label: The column with the label. Default: ``label``.
        eval_data: A second table file with the evaluation rows, for a table file.
        eval_size: How many rows of a source without evaluation rows to hold out: a fraction below 1, or a count. The
            same rows each time.
        task: ``classification`` or ``regression``. For a GLUE folder its name determines it.

    Returns:
        The data, in memory.

    Raises:
        UserError: Something cannot be used; the message says what, where and what to do.
    """
    name = os.fspath(source)
    latest_first = reversed(DataSource.registry.values())
    found = next(s for s in sorted(latest_first, key=lambda s: s.fallback) if s.recognizes(name))
    return found.load(name, ReadOptions(text, text_pair, label, eval_data, eval_size, task))


def load_glue(task: str, data_dir: str | os.PathLike[str] | None = None) -> TextData:
    """Read a task of GLUE.

    Args:
        task: One of `glue_tasks`, in any spelling: ``stsb``, ``STS-B``.
        data_dir: The folder with a sub-folder for each task; None to load it from the hub.

    Raises:
        UserError: There is no such task, the folder lacks it, or something in it cannot be used.
    """
    known = known_task(task)
    if data_dir is None:
        return load_hub_glue(known)
    return load_folder(_task_folder(Path(data_dir), known), ReadOptions(task=known.goal.kind))


def _task_folder(data_dir: Path, task: GlueTask) -> Path:
    try:
        folders = sorted(path for path in data_dir.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"--data-dir {data_dir}: cannot be read ({error.strerror}); give a folder of tasks") from error
    found = [path for path in folders if find_task(path.name) is task]
    if len(found) > 1:
        raise UserError(f"{data_dir}: both {found[0].name} and {found[1].name}; keep one of them")
    if not found:
        held = ", ".join(path.name for path in folders) or "no folder"
        raise UserError(
            f"--data-dir {data_dir}: no folder for {task.name} in it, only {held}; put {task.name}/train.* and "
            f"{task.name}/dev.* there, or leave out --data-dir to load it from the hub"
        )
    return found[0]
