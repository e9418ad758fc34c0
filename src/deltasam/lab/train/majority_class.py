"""What predicting one class for every row reaches without learning, and which runs do no better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import TextData

_LETTERS = 40
# Accuracies are 32-bit numbers: the same share is off in the eighth digit.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class OneClass:
    """The class that most evaluation rows have.

    Attributes:
        name: Its name.
        accuracy: Of predicting it for every evaluation row.
    """

    name: str
    accuracy: float


def one_class_of(data: TextData) -> OneClass | None:
    """The largest class of the evaluation rows; None for scores."""
    if data.kind == "regression":
        return None
    ((label, count),) = Counter(data.evaluation["label"]).most_common(1)
    return OneClass(data.label_names[label], count / len(data.evaluation))


def no_better(one_class: OneClass | None, accuracies: Sequence[float | None]) -> str | None:
    """That runs do no better than one class for all rows, in a sentence; None where all do, or there are no classes.

    Args:
        one_class: Of the rows that all of them were evaluated on.
        accuracies: Of the runs; None without one.
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
    """A name on one line, whatever is in it."""
    return repr(name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…")
