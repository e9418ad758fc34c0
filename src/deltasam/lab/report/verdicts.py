"""The answer at a glance: for each method whether it helped, by how much, how sure that is, and at what price."""

from __future__ import annotations

from dataclasses import dataclass

from deltasam.lab.compare.statistics import formatting
from deltasam.lab.compare.statistics.formatting import MISSING, WORDS, difference_text
from deltasam.lab.compare.statistics.table import Cell, Column, Row, Table
from deltasam.lab.compare.text_tables import rank_text


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


def cards(row: Row) -> list[Card]:
    """A card for every method of one comparison, in order."""
    return [_card(cell, row) for cell in row.begun]


def table_cards(table: Table) -> list[Card]:
    """A card for every method of a table: on how many tasks it helped, and what it does on the average."""
    if len(table.rows) == 1:
        return cards(table.rows[0])
    return [_column_card(column, table) for column in table.columns]


def _column_card(column: Column, table: Table) -> Card:
    level = {
        "average": formatting.mean_margin(column.average),
        "price": _time(column.cost) or MISSING,
        "mean rank": rank_text(table, column.method),
    }
    if column.is_baseline:
        return Card(column.method, "baseline", WORDS["baseline"], level)
    verdicts = [cell.verdict for _, cell in table.cells if cell.method == column.method]
    sure = ", ".join(f"{word} on {verdicts.count(v)}" for v, word in WORDS.items() if v in verdicts) + " tasks"
    if column.difference and column.difference.holm is not None:
        sure = f"corrected {formatting.p_value(column.difference.holm)}; {sure}"
    facts = {"difference": difference_text(column.difference), "how sure": sure, **level}
    return Card(column.method, column.verdict, f"average: {_word(column.verdict, table.baseline)}", facts)


def _card(cell: Cell, row: Row) -> Card:
    lost = f", {len(cell.diverged)} diverged" if cell.diverged else ""
    memory = f"{formatting.gibibytes(cell.peak_memory_mib)} GiB" if cell.peak_memory_mib is not None else ""
    price = ", ".join(filter(None, [_time(cell.cost), memory])) or MISSING
    level = {row.metric: formatting.mean_margin(cell.metric), "price": price, "seeds": f"{len(cell.seeds)}{lost}"}
    if cell.is_baseline:
        verdict = "diverged" if cell.diverged else "baseline"
        return Card(cell.method, verdict, WORDS[verdict], level)
    facts = {"difference": difference_text(cell.difference), "how sure": _certainty(cell, row), **level}
    return Card(cell.method, cell.judgement, _word(cell.judgement, row.baseline), facts)


def _word(verdict: str, baseline: str) -> str:
    return f"{WORDS[verdict]} than {baseline}" if verdict in ("better", "worse") else WORDS[verdict]


def _time(cost: float | None) -> str:
    return "" if cost is None else f"{formatting.ratio(cost)} time per step"


def _certainty(cell: Cell, row: Row) -> str:
    if cell.difference is None:
        return f"no finished seed in common with {row.baseline}"
    signs = list(cell.difference.by_seed.values())
    above = f"above {row.baseline} with {sum(x > 0 for x in signs)} of {len(signs)} seeds"
    if cell.diverged:
        return f"{above}; not judged, since runs diverged"
    if cell.difference.holm is not None:
        return f"corrected {formatting.p_value(cell.difference.holm)}; {above}"
    if cell.difference.p_value is not None:
        return f"{above}; not judged while runs are missing"
    return "one seed says nothing about noise" if len(signs) == 1 else f"{above}; nothing to judge noise by"
