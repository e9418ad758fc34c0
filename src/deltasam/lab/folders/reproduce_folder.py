"""What ``deltasam reproduce`` leaves: ``runs.jsonl`` with every run of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from deltasam.lab.folders.comparison import Gathered
from deltasam.lab.reproduce.record import Record, read_record
from deltasam.lab.train.variant import short_spec

RECORD = "runs.jsonl"


def read_table(folder: Path) -> Record:
    """The table, as far as it is.

    Raises:
        UserError: It cannot be read.
    """
    return read_record(folder / RECORD)


def comparisons(folder: Path, record: Record) -> Iterator[Gathered]:
    """Each row that has finished runs as a comparison of its own, with the chosen specs."""
    for row in record.rows:
        runs = [dataclasses.replace(run.labelled(), metric=row.metrics[0]) for run in row.results]
        if runs:
            planned = {short_spec(spec): row.seeds for spec in row.labels}
            yield Gathered(f"{folder}: {row.name}", runs, planned, record.facts[row.name])
