"""One Holm correction over every difference a table holds: each is one more chance to be fooled."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from typing import TypeVar

from scipy import special

from deltasam.lab.compare.overview.overview import Cell, Column, Overview, Row
from deltasam.lab.compare.statistics.comparison import MethodSummary
from deltasam.lab.compare.statistics.paired import LEVEL, Difference, Estimate, holm

Judged = TypeVar("Judged", MethodSummary, Column)

Key = tuple[str | None, str]
"""Row and method; no row for the average."""


def corrected(overview: Overview) -> Overview:
    """The overview with corrected p-values, hence verdicts, and with what the correction leaves to be seen.

    Comparisons without a p-value, as those whose runs are missing, count like any other: what is said of a table
    that is still running is not taken back because of their number.
    """
    differences = {key: d for key, d in _judged(overview) if d.p_value is not None}
    count = _planned(overview)
    p_values = [d.p_value or 0.0 for d in differences.values()] + [1.0] * (count - len(differences))
    found = dict(zip(differences, holm(p_values), strict=False))
    intervals = [d.estimate for (row, _), d in differences.items() if row is not None and d.estimate.margin is not None]
    return dataclasses.replace(
        overview,
        rows=tuple(_with_holm_in_row(row, found) for row in overview.rows),
        columns=tuple(_with_holm(c, found.get((None, c.method))) for c in overview.columns),
        comparisons=count,
        half_width=statistics.median(e.margin or 0.0 for e in intervals) if intervals else None,
        smallest=statistics.median(_smallest(e, count) for e in intervals) if intervals else None,
    )


def _judged(overview: Overview) -> Iterator[tuple[Key, Difference]]:
    """The differences that may be judged: all runs are there, the baseline's too, and none diverged."""
    for row, cell in overview.cells:
        reference = next(c for c in row.cells if c.is_baseline)
        if cell.verdict == "unknown" and reference.finished and cell.summary and cell.summary.difference:
            yield (row.name, cell.method), cell.summary.difference
    for column in overview.columns:
        if column.verdict == "unknown" and column.difference:
            yield (None, column.method), column.difference


def _planned(overview: Overview) -> int:
    """The cells next to the baseline's and, of several rows, the averages."""
    cells = sum(c.spec is not None and not c.is_baseline for _, c in overview.cells)
    return cells + (sum(not c.is_baseline for c in overview.columns) if len(overview.rows) > 1 else 0)


def _smallest(interval: Estimate, count: int) -> float:
    """The mean at which the t-test reaches the level that Holm's correction asks of the smallest p-value."""
    freedom = interval.count - 1
    wider = special.stdtrit(freedom, 1 - LEVEL / 2 / count) / special.stdtrit(freedom, 1 - LEVEL / 2)
    return float((interval.margin or 0.0) * wider)


def _with_holm_in_row(row: Row, found: Mapping[Key, float]) -> Row:
    cells = (_with_holm_in_cell(cell, found.get((row.name, cell.method))) for cell in row.cells)
    return dataclasses.replace(row, cells=tuple(cells))


def _with_holm_in_cell(cell: Cell, p: float | None) -> Cell:
    return cell if cell.summary is None else dataclasses.replace(cell, summary=_with_holm(cell.summary, p))


def _with_holm(of: Judged, p: float | None) -> Judged:
    if p is None or of.difference is None:
        return of
    return dataclasses.replace(of, difference=dataclasses.replace(of.difference, holm=p))
