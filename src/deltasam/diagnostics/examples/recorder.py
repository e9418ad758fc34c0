"""What training shows of each example at no extra cost, visit by visit."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltasam.diagnostics.examples.csv_file import texts, to_csv, write_csv
from deltasam.diagnostics.examples.detection import Detection, detection

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("weight", "norm", "loss")
"""What examples can be ranked by: their weight in the perturbation, gradient norm and loss, mean over the visits."""

Values = Tensor | Sequence[float]


class ExampleRecorder:
    """The loss, weight, gradient norm and prediction of every training example at every visit.

    A visit is one time that an example was in a batch: one per epoch, where each epoch goes through all of them. What a
    visit did not have (a method without weights, a step that a schedule made plain) stays empty.

    Args:
        size: How many examples there are.
    """

    def __init__(self, size: int) -> None:
        self._visits = [0] * size
        self._values: dict[str, Tensor] = {}  # [visits, size] each; as many visits as the last that had such a value

    def __len__(self) -> int:
        return len(self._visits)

    def add(
        self,
        rows: Tensor | Sequence[int],
        *,
        losses: Values | None = None,
        weights: Values | None = None,
        norms: Values | None = None,
        predictions: Values | None = None,
    ) -> None:
        """Note one visit of some examples, with whatever is known of it.

        Args:
            rows: Which examples [n], counted from 0; one that is there twice was visited twice.
            losses: Of each [n].
            weights: ``step.metrics.get("weights")`` [n].
            norms: ``step.metrics.get("example_norms")`` [n].
            predictions: Classes [n], as integers, or scores [n], as floating-point numbers.

        Raises:
            ValueError: A row is not among the examples, or there are not as many values as rows.
        """
        places = torch.as_tensor(rows).tolist()
        given = {"loss": losses, "weight": weights, "norm": norms, "prediction": predictions}
        noted = {name: _stored(name, values) for name, values in given.items() if values is not None}
        for row in places:
            if not 0 <= row < len(self):
                raise ValueError(f"ExampleRecorder.add(rows): no example {row}; there are {len(self)}, counted from 0")
        for name, values in noted.items():
            if values.shape != (len(places),):
                raise ValueError(
                    f"ExampleRecorder.add: a {name} of shape {list(values.shape)} for {len(places)} rows; give one each"
                )
        visits = []
        for row in places:
            visits.append(self._visits[row])
            self._visits[row] += 1
        where = torch.tensor([visits, places], dtype=torch.long).unbind()
        for name, values in noted.items():
            self._room(name, values.dtype, max(visits, default=-1) + 1)[where] = values

    @property
    def visits(self) -> Tensor:
        """How often each example was visited [size]."""
        return torch.tensor(self._visits)

    @property
    def numbers(self) -> list[str]:
        """Which of ``weight``, ``norm`` and ``loss`` there are."""
        return [name for name in NUMBERS if name in self._values]

    @property
    def has_predictions(self) -> bool:
        """Whether any prediction was noted."""
        return "prediction" in self._values

    def values(self, name: str) -> Tensor:
        """What was noted [visits, size]: a ``weight``, ``norm``, ``loss`` or ``prediction`` at each visit.

        NaN where there is none, -1 for a class.

        Raises:
            KeyError: There is none at all.
        """
        longest = max(self._visits, default=0)
        return _lengthened(self._values[name], longest)

    def mean(self, name: str) -> Tensor:
        """Mean ``weight``, ``norm`` or ``loss`` of each example over the visits that have one; NaN without any [size].

        Raises:
            KeyError: There is none at all.
        """
        values = self._values[name]
        return values.double().nanmean(0).to(values.dtype)

    def last_prediction(self) -> Tensor:
        """The prediction at each example's last visit [size]; NaN where there is none, -1 for a class.

        Raises:
            KeyError: There is none at all.
        """
        values = self.values("prediction")
        last = (self.visits - 1).clamp(min=0)
        return values.gather(0, last[None])[0]

    def detection(self, flipped: Tensor | Sequence[bool]) -> dict[str, Detection]:
        """How well each mean there is finds labels that are known to be wrong: ``{"loss": Detection(auroc=0.9, ...)}``.

        Args:
            flipped: Whether the label is wrong [size].
        """
        return {name: detection(self.mean(name), flipped) for name in self.numbers}

    def frame(self, columns: Mapping[str, Sequence[Any]] | None = None, *, classes: Sequence[str] = ()) -> pd.DataFrame:
        """Everything as a table with one row per example (``docs/how-to/inspect_examples.md`` lists its columns).

        Args:
            columns: What else is known of each example, to come first: ``text``, ``label``, ``clean_label`` (the label
                as it was, where some were made wrong), or anything.
            classes: The name of each class, for predictions that are classes. Labels must then be names too.

        Raises:
            ValueError: A column has not one value per example.
        """
        return example_frame(self, columns or {}, classes)

    def to_csv(
        self, path: str | Path, columns: Mapping[str, Sequence[Any]] | None = None, *, classes: Sequence[str] = ()
    ) -> None:
        """Write ``frame`` to a file, whole or not at all; ``read_examples`` reads it back.

        Raises:
            ValueError: A column has not one value per example.
            UserError: The folder cannot be written, or the disk is full.
        """
        write_csv(Path(path), to_csv(self.frame(columns, classes=classes)))

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes; later visits leave it as it is."""
        return {"visits": self.visits, "values": {name: values.clone() for name, values in self._values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: It is of another number of examples.
        """
        if len(state["visits"]) != len(self):
            raise ValueError(
                f"ExampleRecorder: a state of {len(state['visits'])} examples, where there are {len(self)}"
            )
        self._visits = state["visits"].tolist()
        self._values = {name: values.clone() for name, values in state["values"].items()}

    def _room(self, name: str, dtype: torch.dtype, visits: int) -> Tensor:
        """The values of a name, for so many visits at least."""
        before = self._values.get(name, torch.empty(0, len(self), dtype=dtype))
        self._values[name] = _lengthened(before, visits)
        return self._values[name]


def _stored(name: str, values: Values) -> Tensor:
    """Values on the CPU: classes in 32 bits, numbers in 32 or, where they come so, 64."""
    tensor = torch.as_tensor(values).detach().cpu()
    if name == "prediction" and not tensor.is_floating_point():
        return tensor.int()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _lengthened(values: Tensor, visits: int) -> Tensor:
    missing = max(0, visits - len(values))
    empty = torch.full((missing, values.shape[1]), float("nan") if values.is_floating_point() else -1).to(values.dtype)
    return torch.cat([values, empty]) if missing else values


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


def _class_of(label: object, classes: Sequence[str]) -> int:
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
