"""Results of ``deltasam examples`` as tables in the terminal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from deltasam.diagnostics.examples import NUMBERS
from deltasam.lab.compare.statistics import formatting
from deltasam.lab.compare.text_tables import empty_table
from deltasam.lab.data.setting import Setting

if TYPE_CHECKING:
    import pandas as pd

    from deltasam.lab.compare.statistics.table import Cell

MEANING = {
    "weight": "weight: how much the example counts in the perturbation, on average over its visits; 1 is average.",
    "norm": "norm: length of the gradient of the example's loss, on average over its visits.",
    "loss": "loss: at the weights as they were at each visit, dropout on, on average; in nats, or squared label units.",
}
DETECTION = (
    "AUROC: the chance that an example whose label was made wrong ranks above one whose label is right. 1: all wrong "
    "ones come first; 0.5: chance; below 0.5 they come last: a weight there means the method listens less to them."
)
_SHOWN_TEXT = 160


def ranking_table(ranked: pd.DataFrame, by: str, top: int) -> Table:
    """The first examples of a run, ranked by a mean.

    Args:
        ranked: What ``inspect_examples`` gives of the run.
        by: ``weight``, ``norm`` or ``loss``.
        top: How many to show.
    """
    first = ranked.iloc[0]
    table = empty_table(
        title=f"{first['method']} seed {first['seed']}{_setting(first)}",
        caption=f"the {min(top, len(ranked))} with the largest {by} of {len(ranked)}",
    )
    # Runs of one folder need not have the same columns: those of others are empty here.
    columns = [name for name in ("label", "clean_label", "prediction") if name in ranked and ranked[name].notna().any()]
    counted = "correct_visits" in ranked and ranked["correct_visits"].notna().any()
    for name in ("row", by, *columns, *(["right"] if counted else [])):
        table.add_column(name.replace("clean_label", "label was"), overflow="fold")
    table.add_column("text", overflow="fold", ratio=1)
    for row in ranked.head(top).to_dict("records"):
        cells = [str(row["row"]), formatting.format_number(row[f"mean_{by}"])]
        cells += [_was(row) if name == "clean_label" else _plain(row[name]) for name in columns]
        cells += [f"{row['correct_visits']:.0f} of {row['visits']:.0f}"] if counted else []
        table.add_row(*map(Text, cells), Text(_short(row["text"])))  # Text: no markup
    return table


def detection_table(title: str, methods: Sequence[Cell]) -> Table:
    """How well each mean finds wrong labels, by method: AUROC with its 95 % interval over seeds."""
    table = empty_table(title=title, caption="± 95 % interval over seeds")
    table.add_column("method", overflow="fold")
    for by in NUMBERS:
        table.add_column(f"AUROC of {by}", justify="right", no_wrap=True)
    for method in methods:
        table.add_row(Text(method.method), *(Text(formatting.mean_margin(method.auroc.get(by))) for by in NUMBERS))
    return table


def _setting(row: pd.Series[Any]) -> str:
    if "train_size" not in row:
        return ""
    return f", {Setting(int(row['train_size']), float(row['label_noise'])).title}"


def _was(row: Mapping[Hashable, Any]) -> str:
    """The label before noise, only where it was another."""
    return _plain(row["clean_label"]) if row["flipped"] else ""


def _plain(value: object) -> str:
    """A label or score on one line, without what would steer the terminal."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def _short(text: str) -> str:
    line = " ".join(_plain(text).split())
    return line if len(line) <= _SHOWN_TEXT else f"{line[: _SHOWN_TEXT - 1]}…"
