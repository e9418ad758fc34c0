"""What a recorder has noted as a table: a row for each example."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

    from deltasam.diagnostics.examples.recorder import ExampleRecorder


def example_frame(
    recorder: ExampleRecorder, columns: Mapping[str, Sequence[Any] | Tensor], classes: Sequence[str]
) -> pd.DataFrame:
    """See ``ExampleRecorder.frame``.

    Raises:
        ValueError: A column has not one value per example or a name of the table's own, or a label is no class.
    """
    import pandas as pd

    given = {name: v.tolist() if isinstance(v, Tensor) else list(v) for name, v in columns.items()}
    for name, values in given.items():
        if len(values) != len(recorder):
            raise ValueError(f"the column {name!r} has {len(values)} values for {len(recorder)} examples; one each")
    found: dict[str, Any] = {}
    if {"label", "clean_label"} <= given.keys():
        found["flipped"] = [now != before for now, before in zip(given["label"], given["clean_label"], strict=True)]
    if recorder.has_predictions:
        found["prediction"] = _named(recorder.last_prediction(), classes)
        if "label" in given and not recorder.last_prediction().is_floating_point():
            found |= _correct(recorder, given["label"], classes)
    found["visits"] = recorder.visits.numpy()
    found |= {f"mean_{name}": recorder.mean(name).numpy() for name in recorder.numbers}
    for name in recorder.numbers:
        found |= {f"{name}_{visit}": values.numpy() for visit, values in enumerate(recorder.values(name), 1)}
    if recorder.has_predictions:
        predicted = enumerate(recorder.values("prediction"), 1)
        found |= {f"prediction_{visit}": _named(values, classes) for visit, values in predicted}
    if taken := found.keys() & columns.keys():
        raise ValueError(f"the column {min(taken)!r} is one of the table's own; call yours something else")
    return pd.DataFrame({name: _column(values) for name, values in given.items()} | found)


def ranking(frame: pd.DataFrame, by: str) -> list[int]:
    """The rows that have a mean ``weight``, ``norm`` or ``loss``, largest first; equal ones as they stand."""
    return (-frame[f"mean_{by}"].dropna()).sort_values(kind="stable").index.tolist()


def texts(values: Iterable[Any]) -> pd.Series[Any]:
    """A column of Python's own texts, which may hold what Arrow's cannot."""
    import pandas as pd

    return pd.Series(list(values), dtype=object)


def _column(values: list[Any]) -> pd.Series[Any]:
    import pandas as pd

    return texts(values) if any(isinstance(v, str) for v in values) else pd.Series(values)


def _correct(recorder: ExampleRecorder, labels: list[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Whether the last prediction is the label, and at how many visits it was."""
    import pandas as pd

    wanted = torch.tensor([_class_of(label, classes) for label in labels])
    visits, last = recorder.values("prediction"), recorder.last_prediction()
    correct = pd.Series((last == wanted).numpy(), dtype="boolean").mask((last < 0).numpy())
    return {"correct": correct, "correct_visits": ((visits == wanted) & (visits >= 0)).sum(0).numpy()}


def _class_of(label: Any, classes: Sequence[str]) -> int:
    if classes and label in classes:
        return classes.index(label)
    if classes or not isinstance(label, numbers.Integral):
        known = f"is none of the classes {', '.join(classes)}" if classes else "is no class; give classes=, their names"
        raise ValueError(f"the label {label!r} {known}")
    return int(label)


def _named(predictions: Tensor, classes: Sequence[str]) -> Any:
    """Predictions [size] as scores, class names, or numbers of classes; missing where there is none."""
    import pandas as pd

    if predictions.is_floating_point():
        return predictions.numpy()
    if classes:
        return texts(None if place < 0 else classes[place] for place in predictions.tolist())
    return pd.Series(predictions.numpy(), dtype="Int64").mask((predictions < 0).numpy())
