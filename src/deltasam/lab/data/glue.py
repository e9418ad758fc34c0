"""The tasks of GLUE: files, columns and metrics of each."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from deltasam.errors import UserError
from deltasam.lab.data.assemble import Goal
from deltasam.lab.data.columns import Columns

_HUB_NAME = re.compile(r"(?:nyu-mll/)?glue[/:]([\w-]+)", re.IGNORECASE)


@dataclass(frozen=True)
class GlueTask:
    """Files, columns and metrics of a GLUE task.

    Attributes:
        name: Name of the task: ``stsb``.
        goal: Classes in the order of their indices, and the metrics GLUE reports, the ranking one first.
        layouts: The columns as (text, text pair, label): of the common release, then of the official TSV files.
        tsv_header: The columns of the TSV files if these have no header line.
        dev: Possible names of the development file.
        hub_dev: Name of the development split on the hub.
        further: Other development sets: ``mismatched`` is the file ``dev_mismatched``, on the hub
            ``validation_mismatched``.
    """

    name: str
    goal: Goal
    layouts: tuple[Columns, ...]
    tsv_header: tuple[str, ...] | None = None
    dev: tuple[str, ...] = ("dev",)
    hub_dev: str = "validation"
    further: tuple[str, ...] = ()

    def check_kind(self, where: str, task: str) -> None:
        """Check that ``--task`` does not contradict the task.

        Raises:
            UserError: Scores are asked for where there are classes.
        """
        if task == "regression" and self.goal.kind != "regression":
            raise UserError(f"{where}: {self.name} has classes; leave out --task regression, or name the columns")


def _classes(names: tuple[str, ...], metric: str = "accuracy", *also: str) -> Goal:
    return Goal("classification", metric, names, also)


_SINGLE = Columns("sentence", None, "label")
_PAIR = Columns("sentence1", "sentence2", "label")
_LISTED = (
    GlueTask(
        "cola",
        _classes(("unacceptable", "acceptable"), "matthews"),
        (_SINGLE,),
        ("source", "label", "star", "sentence"),
    ),
    GlueTask("sst2", _classes(("negative", "positive")), (_SINGLE,)),
    GlueTask(
        "mrpc",
        _classes(("not_paraphrase", "paraphrase"), "f1", "accuracy"),
        (_PAIR, Columns("#1 String", "#2 String", "Quality")),
    ),
    GlueTask(
        "stsb", Goal("regression", "spearman", also=("pearson",)), (_PAIR, Columns("sentence1", "sentence2", "score"))
    ),
    GlueTask(
        "qqp",
        _classes(("not_duplicate", "duplicate"), "f1", "accuracy"),
        (Columns("question1", "question2", "label"), Columns("question1", "question2", "is_duplicate")),
    ),
    GlueTask(
        "mnli",
        _classes(("entailment", "neutral", "contradiction")),
        (Columns("premise", "hypothesis", "label"), Columns("sentence1", "sentence2", "gold_label")),
        dev=("dev", "dev_matched"),
        hub_dev="validation_matched",
        further=("mismatched",),
    ),
    GlueTask("qnli", _classes(("entailment", "not_entailment")), (Columns("question", "sentence", "label"),)),
    GlueTask("rte", _classes(("entailment", "not_entailment")), (_PAIR,)),
    GlueTask("wnli", _classes(("not_entailment", "entailment")), (_PAIR,)),
)
_TASKS = {task.name: task for task in _LISTED}


def glue_tasks() -> tuple[str, ...]:
    """List the names of the tasks, in the usual order."""
    return tuple(_TASKS)


def find_task(name: str) -> GlueTask | None:
    """Find the task of that name, in any spelling: ``stsb``, ``STS-B``; None if there is none."""
    return _TASKS.get(_plain(name))


def known_task(name: str) -> GlueTask:
    """Find the task of that name.

    Raises:
        UserError: There is no such task.
    """
    task = find_task(name)
    if task is None:
        near = difflib.get_close_matches(_plain(name), _TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{name}: no task of GLUE; {hint}There are {', '.join(_TASKS)}")
    return task


def task_on_hub(name: str) -> GlueTask | None:
    """Find the task in ``glue/cola`` or ``nyu-mll/glue:cola``; None for another data set.

    Raises:
        UserError: The data set is GLUE, but it has no such task.
    """
    found = _HUB_NAME.fullmatch(name)
    return known_task(found[1]) if found else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
