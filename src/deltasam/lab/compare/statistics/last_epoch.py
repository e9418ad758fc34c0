"""The same comparison at the last epoch, where the main metric is that at a chosen one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.formatting import WORDS, difference_text, p_value
from deltasam.lab.compare.statistics.table import Cell, Row
from deltasam.lab.data.dataset import SELECTED
from deltasam.lab.train.results import RunResult


def at_last_epoch(results: Sequence[RunResult], baseline: str | None = None) -> Row | None:
    """Compare the models as they are when training ends; None where the main metric is theirs already.

    Args:
        results: As ``compare_runs`` takes them.
        baseline: Likewise.
    """
    metric = results[0].metric.removesuffix(SELECTED)
    if metric == results[0].metric or not all(metric in run.metrics for run in results):
        return None
    return compare_runs([dataclasses.replace(run, metric=metric) for run in results], baseline)


def last_epoch_sentence(results: Sequence[RunResult], baseline: str | None = None) -> str:
    """Every difference at the last epoch in one sentence; empty where ``at_last_epoch`` is None or has none."""
    row = at_last_epoch(results, baseline)
    if row is None or not row.others:
        return ""
    each = "; ".join(f"{cell.method} {_judged(cell)}" for cell in row.others)
    return f"At the last epoch, {row.metric} minus {row.baseline}'s: {each} (95 % intervals, Holm-corrected p)."


def _judged(cell: Cell) -> str:
    difference = cell.difference
    p = p_value(difference.holm) if difference and difference.holm is not None else ""
    return ", ".join(filter(None, [difference_text(difference), WORDS[cell.judgement], p]))
