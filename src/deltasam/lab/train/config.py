"""How to train: every choice that changes the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from deltasam.errors import UserError

BUNDLED_MODEL = "minilm"
"""The encoder that ``deltasam[demo]`` carries: 22 million parameters, no download."""

COMMAND, PROVENANCE = "command", "provenance"
"""The parts of a saved configuration that are a record, not options: ``--config`` passes over them."""

Range = tuple[Callable[[Any], bool], str]
"""Whether a value can be used, and what to say if it cannot: must be so."""


def _option(panel: str | None, default: object, help: str, valid: Range | None = None) -> Any:
    """A field that is also an option of the command line: the part of ``--help`` it stands in, its help, its range."""
    return field(default=default, metadata={"panel": panel, "help": help, "range": valid})


_model, _training, _running = (partial(_option, panel) for panel in ("Model", "Training", "Running"))
_summary = partial(_option, None)


def _at_least(least: int, wording: str) -> Range:
    return lambda x: least <= x < math.inf, wording


_SHARE: Range = (lambda x: 0 <= x < 1, "a share from 0 to below 1")


class _Checked:
    """Refuses values out of the range of their field."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value, valid = getattr(self, f.name), f.metadata.get("range")
            if valid and not valid[0](value):
                raise UserError(f"--{f.name.replace('_', '-')} {value}: must be {valid[1]}")


@dataclass(frozen=True)
class SummaryOptions(_Checked):
    """How summaries are learned and written; the names are those of Hugging Face's trainer and ``generate``.

    Raises:
        UserError: A value is out of range.
    """

    max_target_length: int = _summary(64, "Tokens after which a target is cut.", _at_least(2, "2 or more tokens"))
    label_smoothing_factor: float = _summary(0.0, "The share of a target that is spread over all tokens.", _SHARE)
    max_new_tokens: int = _summary(64, "The most tokens written, the end included.", _at_least(1, "1 or more"))
    min_new_tokens: int = _summary(0, "The end is not written before so many tokens.", _at_least(0, "0 or more"))
    num_beams: int = _summary(1, "Width of the beam search; 1: the likeliest token.", _at_least(1, "1 or more"))
    length_penalty: float = _summary(
        1.0, "A beam's log-likelihood is divided by its length to this power.", (math.isfinite, "a number")
    )
    no_repeat_ngram_size: int = _summary(
        0, "No sequence of so many tokens is written twice; 0 allows all.", _at_least(0, "0 (allow all) or more")
    )


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """The options of a training run that are not the data, the method or the seed.

    A field is an option of ``deltasam train`` and ``deltasam compare``, with the help and the range given here.

    Raises:
        UserError: A value is out of range.
    """

    model: str = _model(BUNDLED_MODEL, "minilm (bundled), a local folder, or a name on the Hugging Face hub.")
    layers: int = _model(
        0,
        "Use only the first so many layers of the model: faster, weaker; 0: all.",
        _at_least(0, "0 (all) or more"),
    )
    train_layers: int = _model(
        0,
        "Train only the last so many layers and the head: what is below is frozen, runs once per text, and its "
        "hidden states are kept, so that a step costs only the layers above; 0: all.",
        _at_least(0, "0 (all) or more"),
    )
    max_length: int = _model(128, "Tokens after which a text is cut.", _at_least(2, "2 or more tokens"))
    epochs: int = _training(3, "How often to go through the training data.", _at_least(1, "1 or more"))
    batch_size: int = _training(16, "Examples per step, over all processes.", _at_least(1, "1 or more"))
    learning_rate: float = _training(
        5e-5, "Peak learning rate of AdamW.", (lambda x: 0 < x < math.inf, "a positive number")
    )
    weight_decay: float = _training(
        0.01, "Decay of weight matrices; biases and norms have none.", _at_least(0, "0 or more")
    )
    warmup: float = _training(  # from 0; it then falls linearly to 0
        0.1,
        "Fraction of the steps over which the learning rate rises.",
        (lambda x: 0 <= x <= 1, "a fraction from 0 to 1"),
    )
    label_smoothing: float = _training(0.0, "Share of each label that is spread over all classes.", _SHARE)
    # |V|^2 + |z_i|^2 for example i, V the weights of the last linear layer and z_i its input: in place of SAM where
    # labels are wrong (Baek et al. 2024, arXiv 2405.03676).
    last_layer_l2: float = _training(
        0.0,
        "Factor of the squares of the last layer's weights and inputs in the loss (Baek 2024).",
        _at_least(0, "0 or more"),
    )
    patience: int = _option(
        None,
        0,
        "Stop after this many evaluations without a new best; 0: never.",
        _at_least(0, "0 (never stop early) or more evaluations"),
    )
    evaluate_every: int = _training(
        1,
        "Epochs between evaluations; the end is always evaluated, 0: only the end.",
        _at_least(0, "0 (only at the end) or more epochs"),
    )
    precision: str = _running("fp32", "fp32, or bf16 for autocast.", (lambda x: x in ("fp32", "bf16"), "fp32 or bf16"))
    device: str = _running(
        "cpu", "cpu, cuda (one per process), cuda:1, ...; auto takes an accelerator where there is one."
    )
    summaries: SummaryOptions = SummaryOptions()  # only presets have these, for data with summaries


def check_same_options(saved: dict[str, Any], given: dict[str, Any], where: object, remedy: str) -> None:
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


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


_BEFORE = {f.name: f.default for f in fields(TrainConfig)} | {"noisy_selection": False, "widen": 0, "after": False}
