"""Documents with summaries: XSum, CNN/DailyMail, or any table with two columns of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from deltasam.errors import UserError
from deltasam.lab.data.columns import check_columns, read_texts
from deltasam.lab.data.dataset import fingerprint
from deltasam.lab.data.sources.folder import find_table
from deltasam.lab.data.sources.hub import hub_splits, hub_table
from deltasam.lab.data.split import split_rows, stratified_order
from deltasam.lab.data.table import Table
from deltasam.lab.data.tables import read_table, table_suffix

LAYOUTS = (("document", "summary"), ("article", "highlights"))
"""The columns of XSum and of CNN/DailyMail, taken without ``--text`` and ``--summary``."""


@dataclass(frozen=True)
class SummaryData:
    """Documents with one summary per row, split into training and evaluation.

    Attributes:
        name: Name in tables and reports: ``xsum``.
        train: Columns ``text`` [str], ``summary`` [str; several sentences may be one per line], ``row`` [int, the
            row in the source].
        evaluation: The same columns.
        fingerprint: SHA-256 over the contents of both splits; equal data, equal fingerprint.
        metric: The evaluation metric that ranks checkpoints and methods: the ROUGE-L of papers.
    """

    name: str
    train: Dataset
    evaluation: Dataset
    fingerprint: str
    metric: str = "rougeLsum"

    @property
    def chosen_by(self) -> str:
        """The metric that chooses the epoch."""
        return self.metric

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics that results on this data are reported by, the main one first."""
        return (self.metric, "rouge1", "rouge2")

    @property
    def evaluation_rows_in_training(self) -> int:
        """Number of evaluation rows with the document of a training row, whatever the summaries are."""
        trained = set(self.train["text"])
        return sum(text in trained for text in self.evaluation["text"])

    def take(self, size: int, seed: int) -> SummaryData:
        """A sample of the training split; the evaluation split does not change.

        Args:
            size: The number of training rows to keep.
            seed: Seed of the sample: equal seeds, equal rows. With one seed, a smaller sample is part of a larger one.

        Raises:
            UserError: There are fewer rows than ``size``.
        """
        if not 1 <= size <= len(self.train):
            raise UserError(f"{self.name}: --train-size {size} is impossible; give from 1 to {len(self.train)}")
        order = stratified_order(["any"] * len(self.train), seed)
        train = self.train.select(sorted(order[:size]))
        return replace(self, train=train, fingerprint=fingerprint(train[:], self.evaluation[:], ()))

    def for_selection(self, held_out: float) -> SummaryData:
        """The training rows alone, with a fixed part of them for evaluation.

        Raises:
            UserError: The size is impossible.
        """
        kept, taken = split_rows(
            self.name, ["any"] * len(self.train), held_out, self.train[:]["text"], option="held_out"
        )
        train, evaluation = self.train.select(kept), self.train.select(taken)
        return replace(self, train=train, evaluation=evaluation, fingerprint=fingerprint(train[:], evaluation[:], ()))

    def describe(self) -> dict[str, list[Any]]:
        """The training rows in readable form; their labels are the summaries."""
        columns = self.train[:]
        return {"row": columns["row"], "text": columns["text"], "label": columns["summary"]}


def load_summaries(
    source: str | os.PathLike[str],
    *,
    text: str | None = None,
    summary: str | None = None,
    eval_data: str | os.PathLike[str] | None = None,
    eval_size: float = 0.2,
) -> SummaryData:
    """Read documents with summaries and check every row.

    Args:
        source: A folder with ``train.*`` and ``dev.*``, a table file, or the name of a hub data set such as
            ``EdinburghNLP/xsum`` or ``abisee/cnn_dailymail:3.0.0``.
        text: The column with the documents. Default: ``document`` or ``article``.
        summary: The column with their summaries. Default: ``summary`` or ``highlights``.
        eval_data: A second table file with the evaluation rows, for a table file.
        eval_size: How many rows of a source without evaluation rows to hold out: a fraction below 1, or a count. The
            same rows each time.

    Raises:
        UserError: Something cannot be used; the message says what, where and what to do.
    """
    path = Path(source)
    if path.is_file() or table_suffix(path) is not None:
        return _load_files(path, text, summary, eval_size if eval_data is None else Path(eval_data))
    if eval_data is not None:
        raise UserError(f"{path}: --eval-data has no meaning for it; leave it out")
    if path.is_dir():
        train, dev = (read_table(find_table(path, (stem,))) for stem in ("train", "dev"))
        return _assemble(path.resolve().name, train, dev, text, summary)
    return _load_hub(os.fspath(source), text, summary, eval_size)


def _load_files(path: Path, text: str | None, summary: str | None, evaluation: Path | float) -> SummaryData:
    if isinstance(evaluation, Path) and evaluation.exists() and evaluation.samefile(path):
        raise UserError(f"{evaluation}: both --data and --eval-data; leave out --eval-data to split the file")
    held_out = read_table(evaluation) if isinstance(evaluation, Path) else evaluation
    return _assemble(path.name, read_table(path), held_out, text, summary)


def _load_hub(name: str, text: str | None, summary: str | None, eval_size: float) -> SummaryData:
    train, held_out = hub_splits(name, name)
    used = _choose(name, train.column_names, text, summary)
    evaluation = eval_size if held_out is None else hub_table(f"{name} (evaluation)", held_out, used)
    return _assemble(name, hub_table(f"{name} (train)", train, used), evaluation, *used)


def _choose(where: str, present: Sequence[str], text: str | None, summary: str | None) -> tuple[str, str]:
    """The columns of documents and of summaries."""
    known = next((layout for layout in LAYOUTS if set(layout) <= set(present)), (None, None))
    text, summary = text or known[0], summary or known[1]
    if text is None or summary is None:
        layouts = " or ".join(f"{a!r} and {b!r}" for a, b in LAYOUTS)
        raise UserError(
            f"{where}: no columns {layouts}; name the documents' with --text and the summaries' with --summary; "
            f"columns: {', '.join(map(repr, present)) or 'none'}"
        )
    check_columns(where, present, {"--text": text, "--summary": summary})
    return text, summary


def _assemble(name: str, train: Table, evaluation: Table | float, text: str | None, summary: str | None) -> SummaryData:
    columns = _choose(train.name, list(train.columns), text, summary)
    rows = _examples(train, columns)
    if isinstance(evaluation, Table):
        held_out = _examples(evaluation, _choose(evaluation.name, list(evaluation.columns), *columns))
    else:
        kept, taken = split_rows(train.name, ["any"] * len(rows["row"]), evaluation, rows["text"])
        rows, held_out = (
            {column: [values[i] for i in part] for column, values in rows.items()} for part in (kept, taken)
        )
    return SummaryData(name, _dataset(rows), _dataset(held_out), fingerprint(rows, held_out, ()))


def _examples(table: Table, columns: tuple[str, str]) -> dict[str, list[Any]]:
    return {
        "text": read_texts(table, columns[0], "--text"),
        "summary": read_texts(table, columns[1], "--summary"),
        "row": list(range(len(table.places))),
    }


def _dataset(examples: dict[str, list[Any]]) -> Dataset:
    features = Features({"text": Value("string"), "summary": Value("string"), "row": Value("int64")})
    return Dataset.from_dict(examples, features)
