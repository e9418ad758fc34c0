"""Read a folder in the layout of GLUE: ``train.*`` and ``dev.*`` in a folder named after the task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltasam.data.assemble import Goal, assemble, goal_of
from deltasam.data.columns import Columns, choose_columns
from deltasam.data.dataset import TextData
from deltasam.data.tables import Table, parse_delimited, read_bytes, read_table, supported_suffixes, table_suffix
from deltasam.errors import UserError

_TRAIN = ("train",)
_DEV = ("dev", "dev_matched")  # MNLI has two; the matched one is its usual development set


@dataclass(frozen=True)
class GlueTask:
    """What the name of a GLUE task tells.

    Attributes:
        goal: Classes in the order of their indices, and the metric GLUE ranks by.
        layouts: The columns as (text, text pair, label): of the common release, then of the official TSV files.
        tsv_header: The columns of the TSV files where these have no header line.
    """

    goal: Goal
    layouts: tuple[Columns, ...]
    tsv_header: tuple[str, ...] | None = None


def _classes(metric: str, *names: str) -> Goal:
    return Goal("classification", metric, names)


_SINGLE = Columns("sentence", None, "label")
_PAIR = Columns("sentence1", "sentence2", "label")
_TASKS = {
    "cola": GlueTask(
        _classes("matthews", "unacceptable", "acceptable"), (_SINGLE,), ("source", "label", "star", "sentence")
    ),
    "sst2": GlueTask(_classes("accuracy", "negative", "positive"), (_SINGLE,)),
    "mrpc": GlueTask(
        _classes("f1", "not_paraphrase", "paraphrase"), (_PAIR, Columns("#1 String", "#2 String", "Quality"))
    ),
    "stsb": GlueTask(Goal("regression", "spearman"), (_PAIR, Columns("sentence1", "sentence2", "score"))),
    "qqp": GlueTask(
        _classes("f1", "not_duplicate", "duplicate"),
        (Columns("question1", "question2", "label"), Columns("question1", "question2", "is_duplicate")),
    ),
    "mnli": GlueTask(
        _classes("accuracy", "entailment", "neutral", "contradiction"),
        (Columns("premise", "hypothesis", "label"), Columns("sentence1", "sentence2", "gold_label")),
    ),
    "qnli": GlueTask(_classes("accuracy", "entailment", "not_entailment"), (Columns("question", "sentence", "label"),)),
    "rte": GlueTask(_classes("accuracy", "entailment", "not_entailment"), (_PAIR,)),
    "wnli": GlueTask(_classes("accuracy", "not_entailment", "entailment"), (_PAIR,)),
}


def load_folder(folder: Path, text: str | None, text_pair: str | None, label: str | None, task: str) -> TextData:
    """Read a GLUE folder; with a column named, or a name that is no GLUE task, a folder of plain tables.

    Raises:
        UserError: There is no ``train.*`` or ``dev.*``, or a file cannot be used.
    """
    train, dev = _find(folder, _TRAIN), _find(folder, _DEV)
    name = folder.resolve().name
    known = _TASKS.get(name.lower().replace("-", "").replace("_", ""))
    if known is None or text or text_pair or label:
        train_table, dev_table = read_table(train), read_table(dev)
        columns = choose_columns(str(train), list(train_table.columns), text, text_pair, label)
        choose_columns(str(dev), list(dev_table.columns), columns.text, columns.text_pair, columns.label)
        return assemble(name, train_table, dev_table, columns, goal_of(task))
    if task == "regression" and known.goal.kind != "regression":
        raise UserError(f"{folder}: {name} has classes; leave out --task regression, or name the columns")
    train_table, dev_table = _read(train, known), _read(dev, known)
    columns = _layout(train_table, known)
    if columns != _layout(dev_table, known):
        raise UserError(f"{folder}: {train.name} and {dev.name} name their columns differently; rename them")
    return assemble(f"glue/{name}", train_table, dev_table, columns, known.goal)


def _find(folder: Path, stems: tuple[str, ...]) -> Path:
    """The one table file of a split."""
    try:
        files = sorted(path for path in folder.iterdir() if table_suffix(path) is not None)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    found = [path for path in files if path.name.split(".")[0] in stems]
    if not found:
        raise UserError(
            f"{folder}: not a folder in GLUE layout, no {stems[0]} file in it; give a file as --data, or a folder "
            f"with train.* and dev.*, each one of {supported_suffixes()}"
        )
    if len(found) > 1:
        raise UserError(f"{folder}: both {found[0].name} and {found[1].name}; keep one of them")
    return found[0]


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
