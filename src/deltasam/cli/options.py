"""The options that several commands share, each declared once, and how the fields of a dataclass become options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from deltasam.cli.config_file import apply_config
from deltasam.errors import UserError
from deltasam.lab.train.config import TrainConfig

if TYPE_CHECKING:
    from deltasam.lab.compare.launchers import Launcher
    from deltasam.lab.data.dataset import TextData

T = TypeVar("T")

LARGEST_SEED = 2**32 - 1

_data = partial(typer.Option, rich_help_panel="Data")
_running = partial(typer.Option, rich_help_panel="Running")

SOURCE_HELP = (
    "demo, a .csv, .tsv, .jsonl, .json or .parquet file, a folder in GLUE layout, or a data set on the hub; "
    "glue/rte and the like for GLUE."
)
Source = Annotated[str | None, typer.Argument(help=SOURCE_HELP, show_default="demo")]
SourceOption = Annotated[str | None, _data(help="The same as SOURCE.")]
Data = Annotated[str, _data(help=SOURCE_HELP)]

NOISE_HELP = (
    "Share of the training labels made wrong: each of exactly so many examples gets one of the other classes; scores "
    "change places. Seeded; evaluation labels stay."
)
NoisySelection = Annotated[
    bool,
    _data(
        "--noisy-selection",
        help="Choose the epoch by half of the evaluation rows, with as many wrong labels as training has, and judge on "
        "the other half, at the chosen epoch (accuracy_selected) and at the last.",
    ),
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
Config = Annotated[
    Path | None,
    _running(help="YAML file with any of these options; the command line wins.", callback=apply_config, is_eager=True),
]


@dataclass(frozen=True)
class DataOptions:
    """Which columns of the data are read, what for, and what is evaluated on."""

    text: Annotated[str | None, _data(help="Column with the text. Default: text, or sentence.")] = None
    text_pair: Annotated[str | None, _data(help="Column with the second text, for pairs.")] = None
    label: Annotated[str | None, _data(help="Column with the label, or the score. Default: label.")] = None
    eval_data: Annotated[str | None, _data(help="File to evaluate on. Without it rows of the data are set aside.")] = (
        None
    )
    eval_size: Annotated[float, _data(help="How much to set aside: a fraction below 1, or a number of rows.")] = 0.2
    task: Annotated[str, _data(help="classification, or regression for scores.")] = "classification"

    def load(self, source: str) -> TextData:
        """The data of a source; a UserError says why it cannot be read."""
        from deltasam.lab.data import load_data

        return load_data(source, **dataclasses.asdict(self))


@dataclass(frozen=True)
class LaunchOptions:
    """Where the runs of a grid are done, how many at a time, and where they can be followed."""

    workers: Annotated[
        int | None,
        _running(
            min=1,
            help="Runs at a time, each in a process of its own with its share of the cores (or OMP_NUM_THREADS).",
            show_default="1; with ray as many as fit",
        ),
    ] = None
    launcher: Annotated[
        str,
        _running(
            help="local: this machine. ray: a Ray cluster, the one that RAY_ADDRESS names or that runs here, else a "
            "new one here; each run takes a CPU, or a GPU with --device cuda. It keeps no checkpoints, since machines "
            "need not share a disk: interrupted, finished runs are kept and the others begin anew."
        ),
    ] = "local"
    track: Track = None

    def find(self, device: str) -> tuple[Launcher, tuple[str, ...]]:
        """The launcher and the trackers of runs on a device; a UserError says why one cannot be used here."""
        from deltasam.lab.compare.launchers import find_launcher

        launcher = find_launcher(self.launcher, self.workers, gpu=device.startswith("cuda"))
        return launcher, trackers(self.track, files=launcher.shares_disk)


TRAINING = TrainConfig(device="auto")
"""Defaults of the training options where a command has no others."""


def only(*names: str) -> Callable[[str], bool]:
    """For ``Annotated``: of a dataclass these fields alone are options."""
    return lambda name: name in names


def without(*names: str) -> Callable[[str], bool]:
    """For ``Annotated``: all fields of a dataclass but these are options."""
    return lambda name: name not in names


def options_from_fields(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it, with an option for every field of the parameters that are dataclasses.

    The default of such a parameter gives the defaults of its options. An option is a field whose metadata has a
    ``help``, or that is annotated with ``typer.Option``; ``only`` and ``without`` choose among them.

    Raises:
        UserError: When the command is called: the dataclass refuses a value.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for parameter in signature.parameters.values():
        cls, *chosen = get_args(parameter.annotation) or (parameter.annotation,)
        if not dataclasses.is_dataclass(cls):
            parameters.append(parameter)
            continue
        default = cls() if parameter.default is parameter.empty else parameter.default  # type: ignore[operator]
        own = [option for option in _options(default) if all(choose(option.name) for choose in chosen)]
        parameters += own
        groups[parameter.name] = default, [option.name for option in own]

    @functools.wraps(command)
    def called(**given: object) -> None:
        for name, (default, fields) in groups.items():
            given[name] = dataclasses.replace(default, **{field: given.pop(field) for field in fields})
        command(**given)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return called


def _options(default: Any) -> Iterator[inspect.Parameter]:
    """A parameter for each field of a dataclass that is an option, with the value that it has there as its default."""
    hints = get_type_hints(type(default), include_extras=True)
    for field in dataclasses.fields(default):
        hint, about = hints[field.name], field.metadata
        if "help" in about:
            hint = Annotated[hint, typer.Option(help=about["help"], rich_help_panel=about["panel"])]
        if get_origin(hint) is Annotated:
            kind = inspect.Parameter.KEYWORD_ONLY
            yield inspect.Parameter(field.name, kind, default=getattr(default, field.name), annotation=hint)


def with_device(training: TrainConfig) -> TrainConfig:
    """The training options with the device found; a UserError says why it cannot be used here."""
    from deltasam.lab.train.device import find_device

    return dataclasses.replace(training, device=find_device(training.device))


def methods_at(text: str | None, rho: float) -> list[str]:
    """Full specs of the methods whose gradients are measured, at one radius where a spec gives none.

    Args:
        text: ``--methods``; None: every method with a radius but the exact one, and plain training.
        rho: ``--rho``.

    Raises:
        UserError: There is no such method, one is there twice, or its radius follows a schedule.
    """
    from deltasam.diagnostics import at_radius, default_methods
    from deltasam.lab.train.variant import method_spec
    from deltasam.spec import split_specs

    specs = default_methods() if text is None else split_specs(text)
    for spec in specs:
        plain, at, _ = spec.partition("@")
        if at:
            raise UserError(
                f"--methods {spec}: the radius of a schedule changes from step to step, and one is measured; "
                f"write {plain}, with the rho to measure at"
            )
    return distinct([method_spec(at_radius(spec, rho)) for spec in specs], "--methods")


def check_seed(seed: int, option: str = "--seed") -> int:
    """A seed that NumPy takes, with which rows are drawn; another is a UserError."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{option} {seed}: must be a whole number from 0 to {LARGEST_SEED}")
    return seed


def check_radius(rho: float) -> None:
    """Check that gradients can be measured at a radius; a UserError says if not."""
    if not 0 < rho < math.inf:
        raise UserError(f"--rho {rho}: must be a finite number above 0")


def check_one_process(command: str) -> None:
    """Check that torchrun has not started several processes of a command that cannot share its work."""
    from deltasam.lab.train import distributed as processes

    if processes.count() > 1:
        raise UserError(f"{command} works in one process; start it without torchrun or accelerate launch")


def source_of(argument: str | None, option: str | None) -> str:
    """Where the data is: given as SOURCE or as ``--data``, else the demo; a UserError if given twice."""
    if argument is not None and option is not None:
        raise UserError(f"the data is given twice, {argument} and --data {option}; give one")
    return argument or option or "demo"


def numbers(text: str, option: str, read: Callable[[str], T], form: str) -> list[T]:
    """The values of a list option, ``0,1,2``.

    Args:
        text: As it was given.
        option: Its name, for messages.
        read: Makes a value of a part of the text, or raises ValueError.
        form: What to write, for messages.

    Raises:
        UserError: A part is no such value, or there twice.
    """
    try:
        values = [read(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text!r}: write {form}") from error
    return distinct(values, option)


def distinct(values: list[T], option: str) -> list[T]:
    """The values of a list option; a UserError if there is none, or one is there twice."""
    if not values:
        raise UserError(f"{option}: give at least one")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option}: {value} is there twice; leave one out")
    return values


def trackers(text: str | None, *, files: bool = True) -> tuple[str, ...]:
    """The trackers that ``--track`` names, checked as ``check_trackers`` does."""
    from deltasam.lab.train.tracking import check_trackers

    names = distinct([name.strip() for name in text.split(",")], "--track") if text else []
    check_trackers(names, files=files)
    return tuple(names)


_NOT_RECORDED = {
    "checkpoint_every", "config", "launcher", "only", "output", "resume", "skip", "source", "track", "workers"
}  # fmt: skip


def resolved(params: dict[str, Any], config: TrainConfig, **values: object) -> dict[str, Any]:
    """A command's options as they were used, without those that do not change the numbers."""
    used = {k: v for k, v in params.items() if k not in _NOT_RECORDED}
    found = {k: v for k, v in dataclasses.asdict(config).items() if k in used}
    return {**used, **found, **values}
