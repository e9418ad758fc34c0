"""The answer at a glance: for each method whether it helped, by how much, how sure that is, and at what price."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from deltasam.lab.compare.overview import Overview
from deltasam.lab.compare.overview.cell_text import WORDS, rank_text
from deltasam.lab.compare.overview.overview import Column
from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.comparison import Comparison, MethodSummary
from deltasam.lab.compare.statistics.paired import Difference


@dataclass(frozen=True)
class Card:
    """What the page says first of a method.

    Attributes:
        method: Its spec.
        verdict: Its class: a verdict, or ``baseline``.
        word: The verdict in words.
        facts: What it rests on, by title.
    """

    method: str
    verdict: str
    word: str
    facts: dict[str, str]


def cards(comparison: Comparison) -> list[Card]:
    """A card for every method, in order."""
    return [_card(m, comparison) for m in comparison.methods]


def overview_cards(overview: Overview) -> list[Card]:
    """A card for every method of a table: on how many tasks it helped, and what it does on the average."""
    if len(overview.rows) > 1:
        return [_column_card(column, overview) for column in overview.columns]
    (row,) = overview.rows
    found = [dataclasses.replace(c.summary, relative_seconds=c.cost) for c in row.cells if c.summary]
    return cards(Comparison(row.metrics[0], overview.baseline, tuple(found)))


def _column_card(column: Column, overview: Overview) -> Card:
    price = f"{rounding.ratio(column.cost)} time per step" if column.cost is not None else rounding.MISSING
    rank = rank_text(overview, column.method)
    last = {"average": rounding.mean_margin(column.average), "price": price, "mean rank": rank}
    if column.is_baseline:
        return Card(column.method, "baseline", WORDS["baseline"], last)
    verdicts = [cell.verdict for _, cell in overview.cells if cell.method == column.method]
    tasks = ", ".join(f"{WORDS[v]} on {verdicts.count(v)}" for v in WORDS if v in verdicts) + " tasks"
    word = _word(column.verdict, overview.baseline)
    p = column.difference.holm if column.difference else None
    sure = f"corrected {rounding.p_value(p)}; {tasks}" if p is not None else tasks
    facts = {"difference": _difference(column.difference), "how sure": sure, **last}
    return Card(column.method, column.verdict, f"average: {word}", facts)


def _card(m: MethodSummary, comparison: Comparison) -> Card:
    level = {comparison.metric: rounding.mean_margin(m.metric)}
    price = {"price": _price(m), "seeds": _seeds(m)}
    if m.method == comparison.baseline:
        verdict = "diverged" if m.diverged else "baseline"
        return Card(m.method, verdict, WORDS[verdict], {**level, **price})
    facts = {"difference": _difference(m.difference), "how sure": _certainty(m, comparison), **level, **price}
    return Card(m.method, m.verdict, _word(m.verdict, comparison.baseline), facts)


def _word(verdict: str, baseline: str) -> str:
    return f"{WORDS[verdict]} than {baseline}" if verdict in ("better", "worse") else WORDS[verdict]


def _difference(difference: Difference | None) -> str:
    """The mean and its interval."""
    if difference is None:
        return rounding.MISSING
    return " ".join(filter(None, rounding.signed_interval(difference.estimate)))


def _certainty(m: MethodSummary, comparison: Comparison) -> str:
    if m.difference is None:
        return f"no finished seed in common with {comparison.baseline}"
    signs = list(m.difference.by_seed.values())
    above = f"above {comparison.baseline} with {sum(x > 0 for x in signs)} of {len(signs)} seeds"
    if m.diverged:
        return f"{above}; not judged, since runs diverged"
    if m.difference.holm is None and m.difference.p_value is not None:
        return f"{above}; not judged while runs are missing"
    if m.difference.holm is None:
        return "one seed says nothing about noise" if len(signs) == 1 else f"{above}; nothing to judge noise by"
    return f"corrected {rounding.p_value(m.difference.holm)}; {above}"


def _price(m: MethodSummary) -> str:
    time = f"{rounding.ratio(m.relative_seconds)} time per step" if m.relative_seconds is not None else ""
    memory = f"{rounding.gibibytes(m.peak_memory_mib)} GiB" if m.peak_memory_mib is not None else ""
    return ", ".join(filter(None, [time, memory])) or rounding.MISSING


def _seeds(m: MethodSummary) -> str:
    return f"{len(m.seeds)}, {len(m.diverged)} diverged" if m.diverged else str(len(m.seeds))
