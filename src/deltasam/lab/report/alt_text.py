"""What a chart shows, in words: for those who hear the page instead of seeing it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltasam.lab.report.series import Row


def describe(title: str, entries: Iterable[str]) -> str:
    """A title and what stands under it, as in ``Cost per step. erm: 110; sam: 217.``."""
    return f"{title}. {'; '.join(entries) or 'Nothing to show'}."


def estimates(rows: Sequence[Row], *, signed: bool = False) -> list[str]:
    """Each row with a mean: ``sam, 20 %: +0.011 [0.0102, 0.0118], better``."""
    form = "+.3g" if signed else ".4g"
    return [_estimate(row, form) for row in rows if row.get("mean") is not None]


def _estimate(row: Row, form: str) -> str:
    name = ", ".join(filter(None, [row["method"], row.get("by"), row.get("place")]))
    interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if row.get("low") is not None else ""
    verdict = f", {row['verdict']}" if row.get("verdict") else ""
    return f"{name}: {row['mean']:{form}}{interval}{verdict}"


def last_values(rows: Sequence[Row], field: str) -> list[str]:
    """Where each method's mean over seeds ends: ``sam: 0.886 at step 240``."""
    last = {row["method"]: row for row in rows if "seed" not in row and row[field] is not None}
    return [f"{method}: {row[field]:.4g}{_at(row)}" for method, row in last.items()]


def _at(row: Row) -> str:
    return f" at step {row['step']:.0f}" if "step" in row else ""


def middles(rows: Sequence[Row]) -> list[str]:
    """Where the middle half of each histogram lies: ``delta_sam: half of them from 0.7 to 1.3``."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        bars = [row for row in rows if row["method"] == method]
        found.append(f"{method}: half of them from {_quantile(bars, 0.25):.2g} to {_quantile(bars, 0.75):.2g}")
    return found


def _quantile(bars: Sequence[Row], share: float) -> float:
    """The middle of the bar in which so large a share of all is reached."""
    reached = 0.0
    for bar in bars:
        reached += bar["share"]
        if reached >= share:
            break
    return (bar["low"] + bar["high"]) / 2
