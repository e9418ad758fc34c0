"""What a result keeps of the table of a run's examples: those at the ends of each ranking."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from deltasam.diagnostics.examples import NUMBERS
from deltasam.diagnostics.examples.recorder import ranking
from deltasam.lab.train.results import ExampleRecord

EXTREMES = 20
"""How many of the examples with the largest numbers, and of those with the smallest, are kept."""


def extremes(frame: pd.DataFrame) -> list[ExampleRecord]:
    """The examples with the largest and smallest mean weights, norms and losses, each once.

    Largest first, by the first of the three that there is.
    """
    rankings = [ranking(frame, by) for by in NUMBERS if f"mean_{by}" in frame]
    chosen = {row for order in rankings for row in (*order[:EXTREMES], *order[-EXTREMES:])}
    ordered = [row for row in dict.fromkeys(row for order in rankings for row in order) if row in chosen]
    return [_record(row) for row in frame.loc[ordered].to_dict("records")]


def _record(row: Mapping[Hashable, Any]) -> ExampleRecord:
    known = {name: None if pd.isna(value) else value for name, value in row.items()}
    means = {by: None if (mean := known.get(f"mean_{by}")) is None else float(mean) for by in NUMBERS}
    return ExampleRecord(
        row=row["row"],
        text=row["text"],
        label=_text(known.get("label")) or "",
        visits=row["visits"],
        prediction=_text(known.get("prediction")),
        correct=known.get("correct"),
        clean_label=_text(known.get("clean_label")),
        **means,
    )


def _text(value: Any) -> str | None:
    """A class as it is called; a score as text."""
    return f"{value:.6g}" if isinstance(value, float) else value
