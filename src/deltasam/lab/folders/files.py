"""What the files in output folders are called, and the results in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam.errors import UserError

if TYPE_CHECKING:
    from deltasam.lab.compare.launchers.launcher import RunKey
    from deltasam.lab.train.results import RunResult

CONFIG = "config.yaml"
"""Of every command: which one it was, its options as they were used, and what else decided the numbers."""

PAGE = "report.html"
"""Of ``compare``, ``reproduce`` and ``report``."""

HISTORY, METRICS, EXAMPLES, CHECKPOINT = "history.json", "metrics.json", "examples.csv", "checkpoint.pt"
"""Of ``train``: the result, its metrics, the table of training examples; and, until it is finished, where it is."""

RESULTS = "results.jsonl"
"""Of ``compare``, and of each stage of a row of ``reproduce``: a line per finished run."""

RECORD = "runs.jsonl"
"""Of ``reproduce``: all runs of a table."""

SEARCH, FINAL = "search", "final"
"""The stages of a row of ``reproduce``, in folders of their own."""


def checkpoint_path(folder: Path, key: RunKey) -> Path:
    """Where a run is kept while it is at work: no other run has the same, and any system takes it for a file name."""
    return folder / f"checkpoint-{_file_name(key)}.pt"


def examples_path(folder: Path, key: RunKey) -> Path:
    """Where the table of a finished run's training examples is kept; names as for ``checkpoint_path``."""
    return folder / "examples" / f"{_file_name(key)}.csv"


def _file_name(key: RunKey) -> str:
    name = re.sub(r"\W", "_", key.method.partition(":")[0])[:40]
    digest = hashlib.sha256(f"{key.method} {key.setting}".encode()).hexdigest()[:8]
    return f"{name}-{digest}-seed-{key.seed}"


def read_results(folder: Path) -> list[RunResult]:
    """The finished runs in a folder of ``compare``; none when there is no file.

    Raises:
        UserError: The file cannot be read, or a line is no result.
    """
    return list(_results(folder / RESULTS))


def read_history(folder: Path) -> RunResult | None:
    """The run in a folder of ``train``; None when it is not finished.

    Raises:
        UserError: The file cannot be read, or is no result.
    """
    return next(_results(folder / HISTORY), None)


def _results(path: Path) -> Iterator[RunResult]:
    from deltasam.lab.train.results import RunResult  # with PyTorch, which the names of files need not wait for

    if path.exists():
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 inside a text
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path} ({error}); delete it and run again") from error
        yield from (RunResult.from_json(line) for line in lines if line)
