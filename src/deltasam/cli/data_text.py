"""Lines for the terminal about data: its rows and labels, and the accuracy of predicting the majority class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltasam.lab.train.majority_class import no_better, one_class_of, quoted

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import TextData

_MOST_CLASSES = 6


def data_line(data: TextData, sizes: Sequence[int]) -> str:
    """Rows and labels: ``my.csv: 320 training rows of 800, 200 evaluation rows; classes: 'no' 43 %, 'yes' 57 %``.

    Names evaluation rows whose text is also a training row, and classes without an evaluation row.

    Args:
        data: All of it.
        sizes: Training rows of a run, one number per setting.
    """
    taken = ", ".join(map(str, dict.fromkeys(sizes)))
    rows = f"{taken} training rows of {len(data.train)}, {len(data.evaluation)} evaluation rows{_remarks(data)}"
    return f"{data.name}: {rows}; {_labels(data)}"


def majority_class_note(data: TextData, accuracies: Sequence[float | None]) -> str | None:
    """A sentence on runs no better than predicting the majority class; None without such runs, or without classes.

    Args:
        data: What they were evaluated on.
        accuracies: Of the runs; None without one.
    """
    return no_better(one_class_of(data), accuracies)


def _remarks(data: TextData) -> str:
    remarks = []
    if known := data.evaluation_rows_in_training:
        remarks.append(f"{known} of them with the text of a training row")
    if data.kind == "classification" and (absent := set(data.train["label"]) - set(data.evaluation["label"])):
        names = [quoted(data.label_names[label]) for label in sorted(absent)]
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
    each = (f"{quoted(name)} {100 * counts[i] / len(labels):.0f} %" for i, name in enumerate(data.label_names))
    return f"classes: {', '.join(each)}"
