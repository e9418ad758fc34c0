"""Read data from wherever it is."""

from __future__ import annotations

import os
from pathlib import Path

from deltasam.errors import UserError
from deltasam.lab.data.assemble import assemble, goal_of
from deltasam.lab.data.columns import choose_columns
from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.demo import load_demo
from deltasam.lab.data.folder import load_folder
from deltasam.lab.data.glue import GlueTask, find_task, known_task
from deltasam.lab.data.hub import load_hub, load_hub_glue
from deltasam.lab.data.tables import read_table, table_suffix


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
        text: The column with the text. Default: ``text`` or ``sentence``, when the table has exactly one of them.
        text_pair: The column with the second text, for pairs.
        label: The column with the label. Default: ``label``.
        eval_data: A second table file with the evaluation rows, for a table file.
        eval_size: How much of a source without evaluation rows to split off for them: a fraction below 1, or a
            count. The same rows each time.
        task: ``classification`` or ``regression``. A GLUE folder knows it from its name.

    Returns:
        The data, all in memory.

    Raises:
        UserError: Something cannot be used; the message says what, where and what to do.
    """
    name = os.fspath(source)
    if name.split(":")[0] == "demo":
        _refuse(name, {"--text": text, "--text-pair": text_pair, "--label": label, "--eval-data": eval_data})
        return load_demo(name)
    path = Path(name)
    if path.is_file() or table_suffix(path) is not None:
        return _load_files(path, text, text_pair, label, eval_size if eval_data is None else Path(eval_data), task)
    _refuse(name, {"--eval-data": eval_data})
    if path.is_dir():
        return load_folder(path, text, text_pair, label, task)
    return load_hub(name, text, text_pair, label, eval_size, task)


def load_glue(task: str, data_dir: str | os.PathLike[str] | None = None) -> TextData:
    """Read a task of GLUE.

    Args:
        task: One of `glue_tasks`, however it is written: ``stsb``, ``STS-B``.
        data_dir: The folder that holds a folder for each task; None to load it from the hub.

    Raises:
        UserError: There is no such task, the folder lacks it, or something in it cannot be used.
    """
    known = known_task(task)
    if data_dir is None:
        return load_hub_glue(known)
    return load_folder(_task_folder(Path(data_dir), known), None, None, None, known.goal.kind)


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


def _load_files(
    path: Path, text: str | None, text_pair: str | None, label: str | None, evaluation: Path | float, task: str
) -> TextData:
    goal = goal_of(task)
    train = read_table(path)
    columns = choose_columns(str(path), list(train.columns), text, text_pair, label)
    if not isinstance(evaluation, Path):
        return assemble(path.name, train, evaluation, columns, goal)
    held_out = read_table(evaluation)
    if evaluation.samefile(path):
        raise UserError(f"{evaluation}: both --data and --eval-data; leave out --eval-data to split the file")
    choose_columns(str(evaluation), list(held_out.columns), columns.text, columns.text_pair, columns.label)
    return assemble(path.name, train, held_out, columns, goal)


def _refuse(name: str, options: dict[str, object]) -> None:
    """Stop at an option that would have no effect."""
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{name}: {option} has no meaning for it; leave it out")
