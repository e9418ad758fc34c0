"""The options that commands share, each declared once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltasam.cli.config_file import apply_config
from deltasam.errors import UserError
from deltasam.lab.train.config import TrainConfig
from deltasam.spec import full_spec as spec_of
from deltasam.spec import split_specs

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import TextData

LARGEST_SEED = 2**32 - 1

SOURCE_HELP = (
    "demo, a .csv, .tsv, .jsonl, .json or .parquet file, a folder in GLUE layout, or a data set on the hub; "
    "glue/rte and the like for GLUE."
)

_data = partial(typer.Option, rich_help_panel="Data")
_model = partial(typer.Option, rich_help_panel="Model")
_training = partial(typer.Option, rich_help_panel="Training")
_running = partial(typer.Option, rich_help_panel="Running")

Text = Annotated[str | None, _data(help="Column with the text. Default: text, or sentence.")]
TextPair = Annotated[str | None, _data(help="Column with the second text, for pairs.")]
Label = Annotated[str | None, _data(help="Column with the label, or the score. Default: label.")]
EvalData = Annotated[str | None, _data(help="File to evaluate on. Without it rows of the data are set aside.")]
EvalSize = Annotated[float, _data(help="How much to set aside: a fraction below 1, or a number of rows.")]
Task = Annotated[str, _data(help="classification, or regression for scores.")]

TrainSizes = Annotated[
    str | None,
    _data(
        help="Training examples per run, drawn anew for each seed; all for all of them. Several sizes, 100,500,all, "
        "give a comparison each; for one seed a smaller set is part of the larger ones.",
        show_default="320, or all if there are fewer",
    ),
]
_NOISE_HELP = (
    "Share of the training labels made wrong: each of exactly so many examples gets one of the other classes; scores "
    "change places. Seeded; evaluation labels stay."
)
LabelNoise = Annotated[float | None, _data(help=_NOISE_HELP, show_default="none")]
NoisySelection = Annotated[
    bool,
    _data(
        "--noisy-selection",
        help="Choose the epoch by half of the evaluation rows, with as many wrong labels as training has, and judge on "
        "the other half, at the chosen epoch (accuracy_selected) and at the last.",
    ),
]
LabelNoises = Annotated[
    str | None, _data(help=f"{_NOISE_HELP} Several shares, 0,0.2,0.4, give a comparison each.", show_default="none")
]

Model = Annotated[str, _model(help="minilm (bundled), a local folder, or a name on the Hugging Face hub.")]
Layers = Annotated[int, _model(help="Use only the first so many layers of the model: faster, weaker; 0: all.")]
TrainLayers = Annotated[
    int,
    _model(
        help="Train only the last so many layers and the head: what is below is frozen, runs once per text, and its "
        "hidden states are kept, so that a step costs only the layers above; 0: all."
    ),
]
MaxLength = Annotated[int, _model(help="Tokens after which a text is cut.")]

Epochs = Annotated[int, _training(help="How often to go through the training data.")]
BatchSize = Annotated[int, _training(help="Examples per step, over all processes.")]
LearningRate = Annotated[float, _training(help="Peak learning rate of AdamW.")]
WeightDecay = Annotated[float, _training(help="Decay of weight matrices; biases and norms have none.")]
Warmup = Annotated[float, _training(help="Fraction of the steps over which the learning rate rises.")]

LabelSmoothing = Annotated[float, _training(help="Share of each label that is spread over all classes.")]
LastLayerL2 = Annotated[
    float,
    _training(help="Factor of the squares of the last layer's weights and inputs in the loss (Baek 2024)."),
]
EvaluateEvery = Annotated[
    int, _training(help="Epochs between evaluations; the end is always evaluated, 0: only the end.")
]

Precision = Annotated[str, _running(help="fp32, or bf16 for autocast.")]
Device = Annotated[
    str, _running(help="cpu, cuda (one per process), cuda:1, ...; auto takes an accelerator where there is one.")
]
CheckpointEvery = Annotated[int, _running(min=0, help="Steps between checkpoints; 0: one at the end of each epoch.")]
Track = Annotated[
    str | None,
    _running(
        help="Trackers to follow the runs in, separated by commas: tensorboard (tensorboard --logdir OUTPUT), wandb, "
        "mlflow, trackio, ...",
        show_default="none",
    ),
]
Workers = Annotated[
    int | None,
    _running(
        min=1,
        help="Runs at a time, each in a process of its own with its share of the cores (or OMP_NUM_THREADS).",
        show_default="1; with ray as many as fit",
    ),
]
Launcher = Annotated[
    str,
    _running(
        help="local: this machine. ray: a Ray cluster, the one that RAY_ADDRESS names or that runs here, else a new "
        "one here; each run takes a CPU, or a GPU with --device cuda. It keeps no checkpoints, since machines "
        "need not share a disk: interrupted, finished runs are kept and the others begin anew."
    ),
]
Config = Annotated[
    Path | None,
    _running(help="YAML file with any of these options; the command line wins.", callback=apply_config, is_eager=True),
]


def train_config(params: dict[str, Any]) -> TrainConfig:
    """The training options among a command's parameters, with the device found.

    Raises:
        UserError: A value cannot be used.
    """
    from deltasam.lab.train.device import find_device

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{k: v for k, v in params.items() if k in names})
    return dataclasses.replace(config, device=find_device(config.device))


def full_spec(spec: str) -> str:
    """A method's spec with every hyper-parameter, so that equal methods have equal names.

    Raises:
        UserError: There is no such method, or a hyper-parameter is wrong.
    """
    try:
        return spec_of(spec)
    except ValueError as error:
        raise UserError(str(error)) from error


def full_variant(text: str) -> str:
    """The same for a method that may have training options of its own.

    Raises:
        UserError: There is no such method, or a hyper-parameter or an option is wrong.
    """
    from deltasam.lab.train import variant

    try:
        return variant.full_spec(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def methods_at(text: str | None, rho: float) -> list[str]:
    """Full specs of the methods whose gradients are measured, at one radius where a spec gives none.

    Args:
        text: ``--methods``; None: every method with a radius but the exact one, and plain training.
        rho: ``--rho``.

    Raises:
        UserError: There is no such method, one is there twice, or its radius follows a schedule.
    """
    from deltasam.diagnostics import at_radius, default_methods

    specs = default_methods() if text is None else split_specs(text)
    for spec in specs:
        plain, at, _ = spec.partition("@")
        if at:
            raise UserError(
                f"--methods {spec}: the radius of a schedule changes from step to step, and one is measured; "
                f"write {plain}, with the rho to measure at"
            )
    return distinct([full_spec(at_radius(spec, rho)) for spec in specs], "--methods")


def usable_seed(seed: int, option: str = "--seed") -> int:
    """A seed, checked.

    Raises:
        UserError: NumPy, with which rows are drawn, does not take it.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{option} {seed}: must be a whole number from 0 to {LARGEST_SEED}")
    return seed


def source_of(argument: str | None, option: str | None) -> str:
    """Where the data is: given as SOURCE or as ``--data``, else the demo.

    Raises:
        UserError: It is given twice.
    """
    if argument is not None and option is not None:
        raise UserError(f"the data is given twice, {argument} and --data {option}; give one")
    return argument or option or "demo"


def numbers(text: str, option: str, read: Callable[[str], Any], form: str) -> list[Any]:
    """The numbers of a list option.

    Args:
        text: As it was given: numbers with commas between them.
        option: Its name.
        read: Makes a number of a text.
        form: What to write, for the message.

    Raises:
        UserError: One is no number, or there twice.
    """
    try:
        values = [read(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text!r}: write {form}") from error
    return distinct(values, option)


def distinct(values: list[Any], option: str) -> list[Any]:
    """The values of a list option, checked.

    Raises:
        UserError: There is none, or one is there twice.
    """
    if not values:
        raise UserError(f"{option}: give at least one")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option}: {value} is there twice; leave one out")
    return values


def trackers(text: str | None, *, files: bool = True) -> tuple[str, ...]:
    """The trackers of a list option.

    Args:
        text: As it was given: names with commas between them.
        files: Whether those that write files have a place to write to.

    Raises:
        UserError: One cannot be had, or is there twice.
    """
    from deltasam.lab.train.tracking import check_trackers

    names = distinct([name.strip() for name in text.split(",")], "--track") if text else []
    check_trackers(names, files=files)
    return tuple(names)


def load(params: dict[str, Any]) -> TextData:
    """The data that a command's parameters describe."""
    from deltasam.lab.data import load_data

    names = ("text", "text_pair", "label", "eval_data", "eval_size", "task")
    return load_data(params["data"], **{name: params[name] for name in names})


def resolved(params: dict[str, Any], config: TrainConfig, **values: Any) -> dict[str, Any]:
    """A command's options as they were used, without those that do not change the numbers."""
    elsewhere = ("config", "output", "resume", "checkpoint_every", "workers", "launcher", "track")
    used = {k: v for k, v in params.items() if k not in elsewhere}
    found = {k: v for k, v in dataclasses.asdict(config).items() if k in used}
    return {**used, **found, **values}
