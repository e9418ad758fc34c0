"""Read a folder in the layout of GLUE: ``train.*`` and ``dev.*``, in a folder named after the task."""

from __future__ import annotations

from pathlib import Path

from deltasam.errors import UserError
from deltasam.lab.data.assemble import assemble, goal_of
from deltasam.lab.data.columns import Columns, choose_columns
from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.delimited import parse_delimited
from deltasam.lab.data.glue import GlueTask, find_task
from deltasam.lab.data.source import DataSource, ReadOptions
from deltasam.lab.data.table import Table
from deltasam.lab.data.tables import read_bytes, read_table, supported_suffixes, table_suffix

_TRAIN = ("train",)
_DEV = ("dev", "dev_matched")


class FolderSource(DataSource, name="folder"):
    """A folder with ``train.*`` and ``dev.*``."""

    def recognizes(self, name: str) -> bool:
        """Whether there is such a folder."""
        return Path(name).is_dir()

    def load(self, name: str, options: ReadOptions) -> TextData:
        """Read both tables."""
        options.refuse(name, "eval_data")
        return load_folder(Path(name), options)


def load_folder(folder: Path, options: ReadOptions) -> TextData:
    """Read a GLUE folder; if a column is named, or its name is not a GLUE task, a folder of plain tables.

    Raises:
        UserError: There is no ``train.*`` or ``dev.*``, or a file cannot be used.
    """
    name = folder.resolve().name
    known = find_task(name)
    if known is None or any(options.columns):
        return _load_plain(folder, name, options)
    known.check_kind(str(folder), options.task)
    return _load_task(folder, known)


def _load_plain(folder: Path, name: str, options: ReadOptions) -> TextData:
    train, dev = find_table(folder, _TRAIN), find_table(folder, _DEV)
    train_table, dev_table = read_table(train), read_table(dev)
    columns = choose_columns(str(train), list(train_table.columns), *options.columns)
    choose_columns(str(dev), list(dev_table.columns), columns.text, columns.text_pair, columns.label)
    return assemble(name, train_table, dev_table, columns, goal_of(options.task))


def _load_task(folder: Path, known: GlueTask) -> TextData:
    train, dev = find_table(folder, _TRAIN), find_table(folder, known.dev)
    others = {split: _find_any(folder, (f"dev_{split}",)) for split in known.further}
    train_table = _read(train, known)
    columns = _layout(train_table, known)

    def read_like_train(path: Path) -> Table:
        table = _read(path, known)
        if _layout(table, known) != columns:
            raise UserError(f"{folder}: {train.name} and {path.name} name their columns differently; rename them")
        return table

    further = {split: read_like_train(path) for split, path in others.items() if path is not None}
    return assemble(f"glue/{known.name}", train_table, read_like_train(dev), columns, known.goal, further)


def find_table(folder: Path, stems: tuple[str, ...]) -> Path:
    """The one table file of a split.

    Args:
        folder: The folder to search.
        stems: Possible file names, without suffixes.

    Raises:
        UserError: There is none, or more than one.
    """
    found = _find_any(folder, stems)
    if found is None:
        raise UserError(
            f"{folder}: not a folder in GLUE layout, no {stems[0]} file in it; give a file as --data, or a folder "
            f"with train.* and dev.*, each one of {supported_suffixes()}"
        )
    return found


def _find_any(folder: Path, stems: tuple[str, ...]) -> Path | None:
    try:
        files = sorted(path for path in folder.iterdir() if table_suffix(path) is not None)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    found = [path for path in files if path.name.split(".")[0] in stems]
    if len(found) > 1:
        raise UserError(f"{folder}: both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _read(path: Path, task: GlueTask) -> Table:
    if table_suffix(path) != ".tsv":
        return read_table(path)
    content = read_bytes(path)
    first = content.split(b"\n", 1)[0].decode("utf-8", errors="replace").strip().split("\t")
    header = None if "sentence" in first or task.tsv_header is None else task.tsv_header
    return parse_delimited(str(path), content, "\t", quoted=False, header=header)


def _layout(table: Table, task: GlueTask) -> Columns:
    for columns in task.layouts:
        if {columns.text, columns.text_pair or columns.text, columns.label} <= table.columns.keys():
            return columns
    wanted = task.layouts[0]
    return choose_columns(
        table.name, list(table.columns), wanted.text, wanted.text_pair, wanted.label
    )  # raises: says which of them is missing
