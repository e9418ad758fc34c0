"""Results of ``deltasam fidelity`` as a table in the terminal, and what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from deltasam.diagnostics.fidelity import spec_with_rho
from deltasam.diagnostics.floor import FLOOR
from deltasam.lab.compare.statistics import formatting
from deltasam.lab.compare.text_tables import empty_table

if TYPE_CHECKING:
    from deltasam.diagnostics import Fidelity


_COLUMNS = {
    "error": "error",
    "cosine": "cosine",
    "loss_share": "loss\nshare",
    "gradient_error": "gradient\nerror",
    "gradient_cosine": "gradient\ncosine",
    "distance": "distance\n/ rho",
}


def fidelity_table(results: Sequence[Fidelity], batches: int) -> Table:
    """One row per method: means over the batches, and below each its standard deviation."""
    counted = "1 batch" if batches == 1 else f"{batches} batches; ±: standard deviation over them"
    table = empty_table(caption=f"{counted}; cost: time per step over sam")
    table.add_column("method", overflow="fold")
    for title in (*_COLUMNS.values(), "cost"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    for result in results:
        cells = [_mean_and_spread(getattr(result.mean, n), getattr(result.spread, n)) for n in _COLUMNS]
        # Text: no markup
        table.add_row(Text(spec_with_rho(result.method)), *cells, Text(formatting.ratio(result.cost)))
    return table


def meaning(results: Sequence[Fidelity]) -> str:
    """What the numbers measure, and relative to which radius."""
    return (
        f"Error and cosine are of what a method adds to the plain gradient, beside what one perturbation of length "
        f"{results[0].exact_rho:g} per example adds: error 0, cosine 1 and loss share 1 are exact; error 1 is no "
        f"nearer than plain training, above 1 is farther off.{_of_the_floor(results[-1])}"
    )


def _of_the_floor(last: Fidelity) -> str:
    if last.method.partition(":")[0] != FLOOR:
        return ""
    return (
        f" {FLOOR.capitalize()}: one perturbation for all, with the best weights of the examples that a search found. "
        f"What is left there no reweighting can take away."
    )


def _mean_and_spread(mean: float, spread: float) -> Text:
    if math.isnan(mean):
        return Text(formatting.MISSING)
    return Text(f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f}\n±{spread:.3f}")
