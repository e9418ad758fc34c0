"""How to train: every choice that changes the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deltasam.errors import UserError

BUNDLED_MODEL = "minilm"
"""The encoder that ``deltasam[demo]`` carries: 22 million parameters, no download."""

PROVENANCE = "provenance"
"""The part of a saved configuration that is a record, not an option: ``--config`` passes over it."""

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda x: x >= 1, "1 or more"),
    "batch_size": (lambda x: x >= 1, "1 or more"),
    "learning_rate": (lambda x: 0 < x < math.inf, "a positive number"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
    "warmup": (lambda x: 0 <= x <= 1, "a fraction from 0 to 1"),
    "max_length": (lambda x: x >= 2, "2 or more tokens"),
    "precision": (lambda x: x in ("fp32", "bf16"), "fp32 or bf16"),
    "patience": (lambda x: x >= 0, "0 (never stop early) or more evaluations"),
    "layers": (lambda x: x >= 0, "0 (all) or more"),
    "evaluate_every": (lambda x: x >= 0, "0 (only at the end) or more epochs"),
}


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run that are not the data, the method or the seed.

    Attributes:
        model: ``minilm``, a local folder, or a name on the Hugging Face hub.
        epochs: How often the training data is gone through; the schedule is cut to it.
        batch_size: Examples per optimizer step, over all processes.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: AdamW's decay of weight matrices; biases and norms have none.
        warmup: Fraction of all steps over which the learning rate rises from 0; then it falls linearly to 0.
        max_length: Tokens after which a text is cut.
        precision: ``fp32``, or ``bf16`` for autocast.
        device: What ``torch.device`` takes.
        patience: Stop after this many evaluations without a new best; 0 never stops early.
        layers: Use only the first so many layers of the model; 0: all.
        evaluate_every: Epochs between evaluations; the end of training is always evaluated, and 0 means only that.

    Raises:
        UserError: A value is out of range.
    """

    model: str = BUNDLED_MODEL
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_length: int = 128
    precision: str = "fp32"
    device: str = "cpu"
    patience: int = 0
    layers: int = 0
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name, (valid, expected) in _RULES.items():
            value = getattr(self, name)
            if not valid(value):
                raise UserError(f"--{name.replace('_', '-')} {value}: must be {expected}")


def refuse_difference(saved: dict[str, Any], given: dict[str, Any], where: object, remedy: str) -> None:
    """Check that two sets of options are the same.

    Raises:
        UserError: They are not; names the first option that differs.
    """
    saved, given = _flat(saved), _flat(given)
    for name in {**given, **saved}:
        if saved.get(name) != given.get(name):
            raise UserError(
                f"{where} was made with {name}={_short(saved.get(name))}, now given {_short(given.get(name))}; {remedy}"
            )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, **(options.get(PROVENANCE) or {}), PROVENANCE: None}


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
