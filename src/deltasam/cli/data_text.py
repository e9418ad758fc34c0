"""What data is made of, and what can be had without learning from it, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltasam.data.dataset import TextData

_MOST_CLASSES = 6
_LETTERS = 40


def data_line(data: TextData, sizes: Sequence[int]) -> str:
    """Rows and labels: ``my.csv: 320 training rows of 800, 200 evaluation rows; classes: 'no' 43 %, 'yes' 57 %``.

    Evaluation rows that measure memory (their text is in the training rows), and classes without any, are named.

    Args:
        data: All of it.
        sizes: How many of the training rows a run takes; several where there are several settings.
    """
    taken = ", ".join(map(str, dict.fromkeys(sizes)))
    rows = f"{taken} training rows of {len(data.train)}, {len(data.evaluation)} evaluation rows{_remarks(data)}"
    return f"{data.name}: {rows}; {_labels(data)}"


def no_better_line(data: TextData, accuracies: Sequence[float | None]) -> str | None:
    """That runs do no better than one class for all rows; None where all do, or there are no classes.

    Args:
        data: What they were evaluated on.
        accuracies: Of the runs; None without one.
    """
    if data.kind == "regression":
        return None
    ((label, count),) = Counter(data.evaluation["label"]).most_common(1)
    share = count / len(data.evaluation)
    # Accuracies are 32-bit numbers: the same share is off in the eighth digit.
    beaten = sum(accuracy is not None and accuracy <= share + 1e-6 for accuracy in accuracies)
    if not beaten:
        return None
    who = "It does" if len(accuracies) == 1 else f"{beaten} of {len(accuracies)} runs do"
    constant = f"predicting {_quoted(data.label_names[label])} for every row"
    return f"{who} no better than {constant}: that has an accuracy of {share:.4f} on the evaluation rows."


def _remarks(data: TextData) -> str:
    remarks = []
    if known := data.evaluation_rows_in_training:
        remarks.append(f"{known} of them with the text of a training row")
    if data.kind == "classification" and (absent := set(data.train["label"]) - set(data.evaluation["label"])):
        names = [_quoted(data.label_names[label]) for label in sorted(absent)]
        more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
        remarks.append(f"none of class {', '.join(names[:_MOST_CLASSES])}{more}")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _labels(data: TextData) -> str:
    labels = data.train["label"]
    if data.kind == "regression":
        return f"scores from {min(labels):g} to {max(labels):g}"
    if len(data.label_names) > _MOST_CLASSES:
        return f"{len(data.label_names)} classes"
    counts = Counter(labels)
    each = (f"{_quoted(name)} {100 * counts[i] / len(labels):.0f} %" for i, name in enumerate(data.label_names))
    return f"classes: {', '.join(each)}"


def _quoted(name: str) -> str:
    """A name on one line, whatever is in it."""
    return repr(name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…")
