"""Read data sets of semantic textual similarity, and the raw sentences that embeddings are trained on.

A set is one split of one folder: ``sts12`` is ``sts12/test.*``, ``sickr/dev`` is ``sickr/dev.*``. The folders are in
``sts/``, in ``glue/`` or in the data folder itself. The files of a year contain all its subsets in sequence, and are
read as one set: one rank correlation over the whole year.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from deltasam.errors import UserError
from deltasam.lab.data.columns import read_texts
from deltasam.lab.data.labels import read_scores
from deltasam.lab.data.sentences import Contrast, ScoredPairs, SentenceData
from deltasam.lab.data.table import Table, decode
from deltasam.lab.data.tables import read_bytes, read_table, table_suffix

STANDARD_SETS = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")
"""The sets that papers report: the five years, and the test splits of STS-B and SICK-R."""

_TEXTS = ("sentence1", "sentence2")
_SCORE = "label"


def load_sts(
    folder: Path,
    *,
    sets: Sequence[str] = STANDARD_SETS,
    selection: str | None = "stsb/dev",
    sentences: Path | None = None,
    contrast: Contrast | None = None,
    most_pairs: int | None = None,
) -> SentenceData:
    """Read evaluation sets, a set to select on, and training sentences.

    Args:
        folder: The folder with the data sets.
        sets: The sets to report, ``sts12`` or ``sickr/train``.
        selection: The set to choose hyper-parameters on; None for none.
        sentences: See `read_sentences`; both columns of ``stsb/train`` unless given, as in Mirror-BERT.
        contrast: Settings of the contrastive loss; as in Mirror-BERT unless given.
        most_pairs: Largest number of pairs of each set to evaluate on, to save time; None: all.

    Raises:
        UserError: A set does not exist, or a file cannot be used; the message says which, where and what to do.
    """
    if selection in sets:
        raise UserError(f"{folder}: {selection} is both reported and selected on; choose on a set that is not reported")
    measured = [*sets, *([selection] if selection else [])]
    files = _find(folder, [*measured, *([] if sentences else ["stsb/train"])])
    pairs = {name: read_pairs(files[name]) for name in measured}
    if most_pairs is not None:
        pairs = {name: found.take(most_pairs) for name, found in pairs.items()}
    return SentenceData(
        name="sts",
        train=read_sentences(sentences or files["stsb/train"]),
        evaluation={_metric_name(name): pairs[name] for name in sets},
        selection=pairs[selection] if selection else None,
        contrast=contrast or Contrast(),
    )


def available_sets(folder: Path) -> list[str]:
    """The splits of the standard sets that a folder holds."""
    found = []
    for name in STANDARD_SETS:
        for parent in _parents(folder, name):
            found += [f"{name}/{_split(path)}" for path in sorted(parent.iterdir()) if table_suffix(path) is not None]
    return [name.removesuffix("/test") for name in found]


def read_pairs(path: Path) -> ScoredPairs:
    """Read scored pairs from a table with the columns ``sentence1``, ``sentence2`` and ``label``.

    Raises:
        UserError: The file cannot be used; the message names it and the line.
    """
    table = read_table(path)
    _check_columns(table, (*_TEXTS, _SCORE))
    first, second = (read_texts(table, column) for column in _TEXTS)
    scores = read_scores(table, _SCORE)
    if len(set(scores)) < 2:
        raise UserError(f"{path}: every pair has the score {scores[0]:g}, so no correlation is defined; give others")
    return ScoredPairs(tuple(first), tuple(second), tuple(scores))


def read_sentences(path: Path) -> tuple[str, ...]:
    """Read sentences, each once, in the order of the file: both columns of a table, or the lines of any other file.

    No other column of a table is read, so no label can leak into training.

    Raises:
        UserError: The file cannot be used, or contains fewer than two sentences.
    """
    if table_suffix(path) is None:
        lines = decode(str(path), read_bytes(path)).split("\n")
        found: Iterable[str] = (line.rstrip("\r") for line in lines if line.strip())
    else:
        table = read_table(path)
        _check_columns(table, _TEXTS)
        pairs = zip(*(read_texts(table, column) for column in _TEXTS), strict=True)
        found = (sentence for pair in pairs for sentence in pair)
    sentences = tuple(dict.fromkeys(found))
    if len(sentences) < 2:
        raise UserError(f"{path}: {len(sentences)} different sentences, nothing to tell one from; give two or more")
    return sentences


def _find(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The file of every set."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds sts/ and glue/stsb/")
    files = {name: _files(folder, name) for name in names}
    missing = [name for name, found in files.items() if not found]
    if missing:
        raise UserError(
            f"{folder}: no file of {', '.join(missing)} ({_places(missing[0])} is looked for); add what is missing, or "
            f"ask for sets that are there: {', '.join(available_sets(folder)) or 'there is none'}"
        )
    twice = next((found for found in files.values() if len(found) > 1), None)
    if twice:
        raise UserError(f"{folder}: both {twice[0]} and {twice[1]}; keep one of them")
    return {name: found[0] for name, found in files.items()}


def _files(folder: Path, name: str) -> list[Path]:
    set_name, _, split = name.partition("/")
    paths = [path for parent in _parents(folder, set_name) for path in sorted(parent.iterdir())]
    return [path for path in paths if table_suffix(path) is not None and _split(path) == (split or "test")]


def _parents(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / "sts" / name, folder / "glue" / name, folder / name) if path.is_dir()]


def _places(name: str) -> str:
    set_name, _, split = name.partition("/")
    return f"sts/{set_name}/{split or 'test'}.*"


def _split(path: Path) -> str:
    return path.name.split(".")[0]


def _metric_name(name: str) -> str:
    return name.replace("/", "_")


def _check_columns(table: Table, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in table.columns:
            raise UserError(
                f"{table.name}: no column {column!r}; it must have {', '.join(columns)}, and has "
                f"{', '.join(table.columns)}"
            )
