"""The examples as a table for people: each with its loss, gradient norm and curvature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam.diagnostics.examples.csv_file import to_csv, write_csv

if TYPE_CHECKING:
    from deltasam.diagnostics import ExampleGeometry
    from deltasam.lab.diagnose.subject import Subject

EXAMPLES = "examples.csv"
GEOMETRY = "examples"
"""The diagnostic that has norms and curvatures."""


@dataclass(frozen=True)
class ExampleRow:
    """One example at one checkpoint.

    Attributes:
        checkpoint: Where.
        row: Its number in the source.
        text: The texts of a pair in one.
        label: Its class, or its score.
        prediction: The model's.
        loss: In nats, or the squared error.
        norm: Of its gradient over all trainable weights; None where it was not measured.
        curvature: Along this gradient; None where it was not measured, or there is no gradient.
    """

    checkpoint: str
    row: str
    text: str
    label: str
    prediction: str
    loss: float
    norm: float | None
    curvature: float | None


def example_rows(subject: Subject, geometry: ExampleGeometry | None) -> list[ExampleRow]:
    """All examples of a checkpoint, the largest gradient norm first, or the largest loss where there are no norms."""
    empty = [None] * subject.examples
    norms, curvatures = (geometry.norms, geometry.curvatures) if geometry else (empty, empty)
    columns = zip(subject.texts(), subject.losses.tolist(), norms, curvatures, strict=True)
    rows = [ExampleRow(subject.name, **texts, loss=x, norm=n, curvature=c) for texts, x, n, c in columns]
    return sorted(rows, key=lambda row: row.loss if row.norm is None else row.norm, reverse=True)


def write_examples(rows: Iterable[ExampleRow], folder: Path) -> None:
    """Write examples as CSV (``diagnostics/examples/csv_file.py``).

    Raises:
        UserError: The file cannot be written.
    """
    import pandas as pd

    names = list(ExampleRow.__dataclass_fields__)
    write_csv(folder / EXAMPLES, to_csv(pd.DataFrame([vars(row) for row in rows], columns=names)))
