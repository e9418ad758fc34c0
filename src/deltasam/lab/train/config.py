"""How to train: every choice that changes the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from deltasam.errors import UserError

BUNDLED_MODEL = "minilm"
"""The encoder that ``deltasam[demo]`` carries: 22 million parameters, no download."""

COMMAND, PROVENANCE = "command", "provenance"
"""The parts of a saved configuration that are a record, not options: ``--config`` passes over them."""

Rules = dict[str, tuple[Callable[[Any], bool], str]]

_RULES: Rules = {
    "epochs": (lambda x: x >= 1, "1 or more"),
    "batch_size": (lambda x: x >= 1, "1 or more"),
    "learning_rate": (lambda x: 0 < x < math.inf, "a positive number"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
    "warmup": (lambda x: 0 <= x <= 1, "a fraction from 0 to 1"),
    "max_length": (lambda x: x >= 2, "2 or more tokens"),
    "precision": (lambda x: x in ("fp32", "bf16"), "fp32 or bf16"),
    "patience": (lambda x: x >= 0, "0 (never stop early) or more evaluations"),
    "layers": (lambda x: x >= 0, "0 (all) or more"),
    "label_smoothing": (lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    "last_layer_l2": (lambda x: 0 <= x < math.inf, "0 or more"),
    "train_layers": (lambda x: x >= 0, "0 (all) or more"),
    "evaluate_every": (lambda x: x >= 0, "0 (only at the end) or more epochs"),
}
_SUMMARY_RULES: Rules = {
    "max_target_length": (lambda x: x >= 2, "2 or more tokens"),
    "label_smoothing_factor": (lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    "max_new_tokens": (lambda x: x >= 1, "1 or more"),
    "min_new_tokens": (lambda x: x >= 0, "0 or more"),
    "num_beams": (lambda x: x >= 1, "1 or more"),
    "length_penalty": (lambda x: -math.inf < x < math.inf, "a number"),
    "no_repeat_ngram_size": (lambda x: x >= 0, "0 (allow all) or more"),
}


def _check(options: Any, rules: Rules) -> None:
    for name, (valid, expected) in rules.items():
        value = getattr(options, name)
        if not valid(value):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {expected}")


@dataclass(frozen=True)
class SummaryOptions:
    """How summaries are learned and written; the names are those of Hugging Face's trainer and ``generate``.

    Attributes:
        max_target_length: Tokens after which a summary that is learned from is cut.
        label_smoothing_factor: The share of a target that is spread over all tokens.
        max_new_tokens: The most tokens written, with the one that ends a summary.
        min_new_tokens: The end is not written before so many tokens.
        num_beams: Width of the beam search; 1 takes the likeliest token each time.
        length_penalty: A beam's log-likelihood is divided by its length to this power.
        no_repeat_ngram_size: No sequence of so many tokens is written twice; 0 allows all.

    Raises:
        UserError: A value is out of range.
    """

    max_target_length: int = 64
    label_smoothing_factor: float = 0.0
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        _check(self, _SUMMARY_RULES)


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
        train_layers: Train only the last so many layers and the head; what is below runs once per text; 0: all.
        label_smoothing: The share of each label that is spread over all classes.
        last_layer_l2: Factor of ``|V|^2 + |z_i|^2`` in the loss of example i, V the weights of the last linear layer
            and z_i its input: in place of SAM where labels are wrong (Baek et al. 2024, arXiv 2405.03676).
        evaluate_every: Epochs between evaluations; the end of training is always evaluated, and 0 means only that.
        summaries: For data with summaries.

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
    train_layers: int = 0
    label_smoothing: float = 0.0
    last_layer_l2: float = 0.0
    evaluate_every: int = 1
    summaries: SummaryOptions = SummaryOptions()

    def __post_init__(self) -> None:
        _check(self, _RULES)


def refuse_difference(saved: dict[str, Any], given: dict[str, Any], where: object, remedy: str) -> None:
    """Check that two sets of options are the same. An option that was not there yet had its default.

    Raises:
        UserError: They are not; names the first option that differs.
    """
    given = _flat(given)
    saved = _with_defaults(_flat(saved), given)
    for name in {**given, **saved}:
        if saved.get(name) != given.get(name):
            raise UserError(
                f"{where} was made with {name}={_short(saved.get(name))}, now given {_short(given.get(name))}; {remedy}"
            )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, **(options.get(PROVENANCE) or {}), PROVENANCE: None}


def _with_defaults(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """With what was decided when an option was not there yet, in all parts that have parts themselves."""
    found = dict(saved)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            found[name] = _with_defaults(found[name], value)
        elif found.get(name) is None and name in _BEFORE:
            found[name] = _BEFORE[name]
    return found


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


_BEFORE = {f.name: f.default for f in fields(TrainConfig)} | {"noisy_selection": False, "widen": 0, "after": False}
