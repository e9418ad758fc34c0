"""The cells of a table as text, the same in the terminal and in Markdown."""

from __future__ import annotations

from deltasam.lab.compare.overview.overview import Cell, Column, Overview
from deltasam.lab.compare.statistics import formatting as rounding

MARKS = {"better": "▲", "worse": "▼", "diverged": "✕"}
"""What stands next to a number; within noise nothing does, so that nothing looks like a finding."""

WORDS = {
    "better": "better",
    "worse": "worse",
    "noise": "within noise",
    "unknown": "not judged",
    "diverged": "diverged",
    "baseline": "baseline",
    "absent": "not run",
    "waiting": "waiting",
    "unfinished": "unfinished",
}


def main_text(cell: Cell) -> str:
    """The main metric with mark and margin: ``▲ 0.912 ± 0.014``; a word where there is none."""
    if cell.verdict in ("absent", "waiting"):
        return WORDS[cell.verdict]
    parts = [MARKS.get(cell.verdict), rounding.mean_margin(cell.summary.metric if cell.summary else None)]
    if cell.verdict == "unfinished":
        parts.append(f"({len(cell.values)} of {len(cell.planned)} runs)")
    return " ".join(filter(None, parts))


def others_text(cell: Cell) -> str:
    """The further metrics' means: ``0.85, 0.91``; empty without any."""
    return ", ".join(rounding.plain(e.mean) for e in cell.others.values() if e)


def average_text(column: Column) -> str:
    """The average over tasks with mark and margin."""
    return " ".join(filter(None, [MARKS.get(column.verdict), rounding.mean_margin(column.average)]))


def rank_text(overview: Overview, method: str) -> str:
    """The mean rank: ``2.4``."""
    rank = overview.ranking.mean.get(method)
    return rounding.MISSING if rank is None else f"{rank:.1f}"


def row_title(metrics: tuple[str, ...], name: str) -> str:
    """The task and its metrics: ``MRPC (f1, accuracy)``."""
    return f"{name} ({', '.join(metrics)})"


def footers(overview: Overview) -> list[tuple[str, list[str]]]:
    """The last rows: title, and a text for every method."""
    costs = ("cost", [rounding.ratio(c.cost) for c in overview.columns])
    if len(overview.rows) == 1:
        return [costs]
    tasks = of_tasks(overview)
    return [
        (f"average {tasks}", [average_text(c) for c in overview.columns]),
        (f"mean rank {tasks}", [rank_text(overview, m) for m in overview.methods]),
        costs,
    ]


def of_tasks(overview: Overview) -> str:
    """Which tasks ranks and averages are over: ``of 7 tasks``, ``of 5 whole tasks``."""
    whole = len(overview.whole_rows)
    return f"of {whole} tasks" if whole == len(overview.rows) else f"of the {whole} whole tasks"


def legend(overview: Overview) -> str:
    """What the marks and the last rows mean."""
    return (
        f"▲ better, ▼ worse than {overview.baseline}, ✕ diverged, no mark: within noise or not judged; ±: 95 % "
        f"interval over seeds; rank 1 is best; cost: time per step over {overview.baseline}'s"
    )
