"""Several comparisons judged together: one correction for all differences that a page shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from deltasam.lab.compare.overview import Overview
from deltasam.lab.compare.overview.correction import corrected
from deltasam.lab.compare.overview.overview import Cell, Row
from deltasam.lab.compare.overview.ranking import Ranking
from deltasam.lab.compare.statistics.comparison import Comparison, MethodSummary
from deltasam.lab.compare.statistics.paired import LEVEL, Difference, effect_size, seeds_needed
from deltasam.lab.compare.statistics.statistics import by_method, compare, values_of
from deltasam.lab.folders.comparison import Gathered


def judge(gathered: Sequence[Gathered]) -> tuple[Overview, list[Comparison]]:
    """The table of comparisons x methods, and each comparison, with the same p-values and verdicts.

    Unlike the tasks of a table, comparisons need not be of one kind: there are no averages and ranks over them. Each
    has a baseline of its own, and methods whose runs are not all finished are not judged.
    """
    alone = [compare(g.results) for g in gathered]
    methods = list(dict.fromkeys(m for g, c in zip(gathered, alone, strict=True) for m in _methods(g, c)))
    rows = tuple(_row(g, c, methods) for g, c in zip(gathered, alone, strict=True))
    baselines = {c.baseline for c in alone}
    name = baselines.pop() if len(baselines) == 1 else "the baseline"
    overview = corrected(Overview(name, rows, columns=(), ranking=Ranking({}, None, None), unit="comparison"))
    return overview, [_as_judged(c, row, overview) for c, row in zip(alone, overview.rows, strict=True)]


def _methods(gathered: Gathered, comparison: Comparison) -> list[str]:
    return [comparison.baseline, *(m for m in gathered.planned if m != comparison.baseline)]


def _row(gathered: Gathered, comparison: Comparison, methods: Sequence[str]) -> Row:
    summaries = {m.method: _unjudged(m) for m in comparison.methods}
    runs = by_method(gathered.results)
    cells = [
        Cell(
            method=method,
            spec=method if method in gathered.planned else None,
            planned=tuple(gathered.planned.get(method, ())),
            values=values_of(runs.get(method, {}), comparison.metric),
            summary=summaries.get(method),
            others={},
            cost=summaries[method].relative_seconds if method in summaries else None,
            is_baseline=method == comparison.baseline,
        )
        for method in methods
    ]
    return Row(gathered.title, (comparison.metric,), tuple(cells))


def _unjudged(m: MethodSummary) -> MethodSummary:
    return (
        m if m.difference is None else dataclasses.replace(m, difference=dataclasses.replace(m.difference, holm=None))
    )


def _as_judged(comparison: Comparison, row: Row, overview: Overview) -> Comparison:
    """The comparison with the differences of its row."""
    judged = {cell.method: cell.summary.difference for cell in row.cells if cell.summary}
    methods = (dataclasses.replace(m, difference=_outlook(judged[m.method], overview)) for m in comparison.methods)
    return dataclasses.replace(comparison, methods=tuple(methods))


def _outlook(difference: Difference | None, overview: Overview) -> Difference | None:
    """With the seeds it would take to show the difference among so many comparisons; None where it is not judged."""
    if difference is None:
        return None
    effect = effect_size(difference) if difference.holm is not None else None
    needed = seeds_needed(effect, LEVEL / overview.comparisons) if effect else None
    return dataclasses.replace(difference, seeds_needed=needed)
