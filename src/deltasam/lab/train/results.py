"""What one finished run leaves behind, and how it is written and read."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deltasam.diagnostics.examples.detection import Detection
from deltasam.errors import UserError
from deltasam.lab.data.setting import Setting
from deltasam.lab.train.majority_class import OneClass, no_better
from deltasam.lab.train.variant import short_spec


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. Losses are means over the batch, in nats (or squared label units)."""

    step: int
    epoch: float
    loss: float
    perturbed_loss: float
    ascent_norm: float
    radius_ratio: float
    seconds: float
    learning_rate: float


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation during training: the loss and every metric on the evaluation split."""

    step: int
    epoch: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class ExampleRecord:
    """One training example as a run saw it. Means are over its visits, one per epoch; None: it has no such number."""

    row: int
    text: str
    label: str
    """What it was trained with; a score as text, empty for data without labels."""
    weight: float | None = None
    """Mean weight; 1 is average. Only methods that weight examples have one."""
    norm: float | None = None
    """Mean norm of the gradient of its loss. Only methods that compute it have one."""
    loss: float | None = None
    """Mean loss in the first pass: at the weights as they are, dropout on. None in old results."""
    visits: int | None = None
    prediction: str | None = None
    """In the first pass of the last visit, dropout on."""
    correct: bool | None = None
    """Whether the prediction is the label; only for classes."""
    clean_label: str | None = None
    """The label as it was before noise was added; None where no noise was."""

    @property
    def flipped(self) -> bool | None:
        """Whether the label was made wrong on purpose; None where no noise was added."""
        return None if self.clean_label is None else self.clean_label != self.label


@dataclass(frozen=True)
class RunResult:
    """One method, one seed, start to end."""

    method: str
    """The full spec: ``sam:rho=0.05``. Methods are told apart by it."""
    seed: int
    metric: str
    """The name of the main metric, a key of ``metrics``; larger is better."""
    metrics: dict[str, float]
    """At the last evaluation: the main metric, ``loss`` (NLL in nats for classification, mean squared error
    for regression), ``ece`` (expected calibration error, classification only), and others."""
    seconds_per_step: float
    """Mean over the steps after the first: of each kind, with a perturbation or without, the median counts."""
    peak_memory_mib: float | None
    """Largest memory in use during the run: allocated on CUDA, resident set on CPU; None where unknown. Of several
    processes the largest."""
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    examples: list[ExampleRecord] = field(default_factory=list)
    """The training examples with the 20 largest and the 20 smallest mean weights, norms and losses, each once (see
    ``ranked``). In old results by weight alone, and empty for methods without weights."""
    weights: list[float] = field(default_factory=list)
    """Mean weight of every training example, unordered; empty for methods without weights."""
    reported: tuple[str, ...] = ()
    """The metrics that results on this data are reported by, the main one first; empty in old results."""
    setting: Setting | None = None
    """How much it was trained on, and how clean; None in old results."""
    detection: dict[str, Detection] = field(default_factory=dict)
    """How well the examples' mean ``weight``, ``norm`` and ``loss``, as far as there are such, find the labels that are
    wrong; empty where no noise was added, and in old results."""

    one_class: OneClass | None = None
    """What predicting one class for all evaluation rows reaches; None without classes, and in old results."""

    after: dict[str, dict[str, float]] = field(default_factory=dict)
    """The main metric and ``loss`` of the final model with its weights rounded, pruned and with noise, by what was done
    (``after.py``); empty unless asked for, and in old results."""

    table: str = field(default="", repr=False, compare=False)
    """The whole table of examples, as the text of a CSV file; not part of ``to_json``, and not read back."""

    def ranked(self, by: str) -> list[ExampleRecord]:
        """Those of ``examples`` that have a mean ``weight``, ``norm`` or ``loss``, largest first; empty without any.

        The first 20 are the first 20 of all training examples, the last 20 the last: what is between has gaps.
        """
        known = [(value, example) for example in self.examples if (value := getattr(example, by)) is not None]
        return [example for _, example in sorted(known, key=lambda pair: (-pair[0], pair[1].row))]

    def labelled(self) -> RunResult:
        """The same with the short spec, for tables and charts."""
        return dataclasses.replace(self, method=short_spec(self.method))

    def to_json(self) -> str:
        """One line of JSON."""
        found = {name: value for name, value in dataclasses.asdict(self).items() if name != "table"}
        return json.dumps(found, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> RunResult:
        """Inverse of ``to_json``.

        Raises:
            UserError: The line is not a run result.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            data["steps"] = [StepRecord(**x) for x in data["steps"]]
            data["evaluations"] = [EvaluationRecord(**x) for x in data["evaluations"]]
            data["examples"] = [ExampleRecord(**x) for x in data["examples"]]
            data["reported"] = tuple(data.get("reported", ()))
            data["detection"] = {by: Detection(**x) for by, x in data.get("detection", {}).items()}
            data["setting"] = Setting(**data["setting"]) if data.get("setting") else None
            data["one_class"] = OneClass(**data["one_class"]) if data.get("one_class") else None
            return cls(**data)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a saved run ({error}): {line[:60]!r}; delete it and run again") from error


def seconds_per_step(steps: Sequence[StepRecord]) -> float:
    """The mean time of a step, without the first, which pays for warming up.

    Of each kind of step, with a perturbation or without, the median counts: a step that was held up does not show.
    """
    times: dict[bool, list[float]] = defaultdict(list)
    for step in steps[1:] or steps:
        times[_perturbed(step)].append(step.seconds)
    return float(np.average([statistics.median(t) for t in times.values()], weights=[len(t) for t in times.values()]))


def relative_seconds(ours: Sequence[StepRecord], theirs: Sequence[StepRecord]) -> float | None:
    """How many times as long as another run's the steps take together; None where no step after the first is common.

    Steps are paired, since batches differ in length; of each kind of pair the median of the ratios counts.
    """
    pairs: dict[tuple[bool, bool], list[tuple[float, float]]] = defaultdict(list)
    their_steps = _by_number(theirs)
    both = [(step, their_steps[number]) for number, step in sorted(_by_number(ours).items()) if number in their_steps]
    for mine, other in both[1:]:
        pairs[_perturbed(mine), _perturbed(other)].append((mine.seconds, other.seconds))
    if not pairs:
        return None
    ratios = [statistics.median(mine / other for mine, other in kind) for kind in pairs.values()]
    weights = [len(kind) * statistics.median(other for _, other in kind) for kind in pairs.values()]
    return float(np.average(ratios, weights=weights))


def _perturbed(step: StepRecord) -> bool:
    return not math.isnan(step.perturbed_loss)


def _by_number(steps: Sequence[StepRecord]) -> Mapping[int, StepRecord]:
    return {step.step: step for step in steps}


def by_setting(results: Sequence[RunResult]) -> dict[Setting | None, list[RunResult]]:
    """Runs by their setting, in the order in which settings come up; None: results that do not tell."""
    found: dict[Setting | None, list[RunResult]] = {}
    for result in results:
        found.setdefault(result.setting, []).append(result)
    return found


def runs_no_better(runs: Sequence[RunResult]) -> str | None:
    """The same of finished runs on the same evaluation rows; None also for results that are too old to tell."""
    one_class = next((run.one_class for run in runs if run.one_class), None)
    return no_better(one_class, [run.metrics.get("accuracy") for run in runs])


def each_no_better(groups: Mapping[str, Sequence[RunResult]]) -> dict[str, str]:
    """The same of several groups of runs by their names; those of which there is nothing to say are left out."""
    return {name: sentence for name, runs in groups.items() if (sentence := runs_no_better(runs))}
