"""The majority-class baseline, and runs that do no better than it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import TextData

_LETTERS = 40
# Accuracies are 32-bit numbers: equal fractions may differ in the eighth digit.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class OneClass:
    """The majority class of the evaluation rows.

    Attributes:
        name: Name of the class.
        accuracy: Accuracy of predicting it for every evaluation row.
    """

    name: str
    accuracy: float


def one_class_of(data: TextData) -> OneClass | None:
    """The majority class of the evaluation rows; None for scores."""
    if data.kind == "regression":
        return None
    ((label, count),) = Counter(data.evaluation["label"]).most_common(1)
    return OneClass(data.label_names[label], count / len(data.evaluation))


def no_better(one_class: OneClass | None, accuracies: Sequence[float | None]) -> str | None:
    """A sentence on the runs that do no better than the majority class; None if all do better, or without classes.

    Args:
        one_class: Majority class of the rows that all runs were evaluated on.
        accuracies: Accuracy of each run; None if it has none.
    """
    if one_class is None:
        return None
    beaten = sum(accuracy is not None and accuracy <= one_class.accuracy + _ROUNDING for accuracy in accuracies)
    if not beaten:
        return None
    who = "It does" if len(accuracies) == 1 else f"{beaten} of {len(accuracies)} runs {'does' if beaten == 1 else 'do'}"
    constant = f"predicting {quoted(one_class.name)} for every row"
    return f"{who} no better than {constant}: that has an accuracy of {one_class.accuracy:.4f} on the evaluation rows."


def quoted(name: str) -> str:
    """A name quoted on one line, whatever characters it contains."""
    return repr(name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…")
