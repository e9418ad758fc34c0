"""``deltasam compare``: several methods, several seeds, one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deltasam
from deltasam.cli import options
from deltasam.cli.data_text import data_line, no_better_line
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.compare.launchers import find_launcher
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import PROVENANCE, TrainConfig
from deltasam.lab.train.provenance import provenance

if TYPE_CHECKING:
    from deltasam.lab.compare.grid import Grid
    from deltasam.lab.compare.launchers import Launcher
    from deltasam.lab.data.dataset import TextData
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.train.results import RunResult

ALL = "all"
SIZE = 320
"""Training examples per run unless told: so many, or all where there are fewer."""


def compare(
    ctx: typer.Context,
    source: Annotated[str | None, typer.Argument(help=options.SOURCE_HELP, show_default="demo")] = None,
    data: Annotated[str | None, typer.Option(help="The same as SOURCE.", rich_help_panel="Data")] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas (see: deltasam methods); one may have training options of its own, as "
            "erm+epochs=4."
        ),
    ] = ("erm,sam,delta_sam,per_instance_sam"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas: a run of each method per seed.")] = "0,1",
    train_size: options.TrainSizes = None,
    label_noise: options.LabelNoises = None,
    noisy_selection: options.NoisySelection = False,
    output: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("runs/demo"),
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    eval_data: options.EvalData = None,
    eval_size: options.EvalSize = 0.2,
    task: options.Task = "classification",
    model: options.Model = TrainConfig.model,
    layers: options.Layers = TrainConfig.layers,
    train_layers: options.TrainLayers = TrainConfig.train_layers,
    max_length: options.MaxLength = TrainConfig.max_length,
    epochs: options.Epochs = 2,
    batch_size: options.BatchSize = TrainConfig.batch_size,
    learning_rate: options.LearningRate = 2e-4,
    weight_decay: options.WeightDecay = TrainConfig.weight_decay,
    warmup: options.Warmup = TrainConfig.warmup,
    label_smoothing: options.LabelSmoothing = TrainConfig.label_smoothing,
    last_layer_l2: options.LastLayerL2 = TrainConfig.last_layer_l2,
    evaluate_every: options.EvaluateEvery = TrainConfig.evaluate_every,
    precision: options.Precision = TrainConfig.precision,
    device: options.Device = "auto",
    after: Annotated[
        bool,
        typer.Option(
            "--after",
            help="Measure each final model with its weights rounded to 8, 4 and 3 bits, with 30, 50 and 60 % of them "
            "set to 0, and with noise: 17 evaluations more per run.",
        ),
    ] = False,
    checkpoint_every: options.CheckpointEvery = 0,
    workers: options.Workers = None,
    launcher: options.Launcher = "local",
    track: options.Track = None,
    config: options.Config = None,
) -> None:
    """Compare methods on the same data, order, initial head and dropout masks, seed by seed.

    Ends in a table, one sentence on what it shows, and a report with charts. Without options: the demo.

    With several training sizes or shares of wrong labels, each combination is a comparison of its own.

    Interrupted, it goes on where it stopped when the same command is given again, also with other --workers.

    One after the other or side by side, the numbers are the same; with OMP_NUM_THREADS=1 to the last bit.

    [bold]Examples[/bold]

    deltasam compare

    deltasam compare reviews.csv --text review --label stars --train-size 1000 --output runs/reviews

    deltasam compare --methods erm,sam:rho=0.02,sam:rho=0.05,sam:rho=0.1 --seeds 0,1,2,3,4 --output runs/rho

    deltasam compare --seeds 0,1,2,3,4 --workers 4 --output runs/wide

    deltasam compare --track tensorboard --output runs/watched

    deltasam compare --after --seeds 0,1,2,3,4 --output runs/after

    deltasam compare --label-noise 0,0.2,0.4 --seeds 0,1,2,3,4 --output runs/noise

    deltasam compare --train-layers 2 --label-noise 0.3 --noisy-selection --methods erm,erm+label_smoothing=0.2,\
sam:rho=0.1 --output runs/rivals

    deltasam compare --train-size 100,320,1000 --seeds 0,1,2,3,4 --output runs/size
    """
    params = {k: v for k, v in ctx.params.items() if k != "source"} | {"data": options.source_of(source, data)}
    settings = options.train_config(params)
    axes: dict[str, list[Any]] = {"train_size": _sizes(train_size), "label_noise": _noises(label_noise)}
    recorded = {name: _recorded(values) for name, values in axes.items()}
    choices = options.resolved(params, settings, methods=_methods(methods), seeds=_seeds(seeds), **recorded)
    if processes.count() > 1 and (launcher != "local" or workers not in (None, 1)):
        raise UserError(
            "--workers and --launcher do runs side by side, torchrun does each run with all processes: use one"
        )
    where = find_launcher(launcher, workers, gpu=settings.device.startswith("cuda"))
    trackers = options.trackers(track, files=where.shares_disk)
    with interruptible(lambda: "go on with the same command"):
        _compare(output, choices, axes, settings, checkpoint_every, where, trackers)


def _methods(text: str) -> list[str]:
    return options.distinct([options.full_variant(spec) for spec in deltasam.split_specs(text)], "--methods")


def _seeds(text: str) -> list[int]:
    seeds = options.numbers(text, "--seeds", int, "whole numbers separated by commas, as in 0,1,2")
    return [options.usable_seed(seed, "--seeds") for seed in seeds]


def _sizes(text: str | None) -> list[int | str | None]:
    if text is None:
        return [None]
    form = "whole numbers or all, separated by commas, as in 100,500,all"
    return options.numbers(text, "--train-size", lambda part: part if part == ALL else int(part), form)


def _noises(text: str | None) -> list[float]:
    return options.numbers(text or "0", "--label-noise", float, "shares separated by commas, as in 0,0.2,0.4")


def _recorded(values: list[Any]) -> Any:
    """A single value as itself, and no noise as nothing: what folders hold from before these could be several."""
    return values if len(values) > 1 else (values[0] or None)


def _settings(data: TextData, axes: dict[str, list[Any]], noisy_selection: bool) -> list[Setting]:
    from deltasam.lab.data.setting import Setting

    rows = len(data.train)
    special = {ALL: rows, None: min(SIZE, rows)}
    sizes = options.distinct([special.get(size, size) for size in axes["train_size"]], "--train-size")
    return [Setting(size, noise, noisy_selection) for size in sizes for noise in axes["label_noise"]]


def _compare(
    output: Path,
    choices: dict[str, Any],
    axes: dict[str, list[Any]],
    config: TrainConfig,
    checkpoint_every: int,
    launcher: Launcher,
    trackers: tuple[str, ...],
) -> None:
    from deltasam.lab.compare.grid import Grid
    from deltasam.lab.folders.config import check_folder, create_run_folder

    processes.on_main(lambda: check_folder(output, "compare", choices))
    data = options.load(choices)
    settings = _settings(data, axes, choices["noisy_selection"])
    grid = Grid(data, config, choices["methods"], choices["seeds"], settings, checkpoint_every, after=choices["after"])
    grid.check()
    recorded = {**choices, PROVENANCE: provenance(data)}
    processes.on_main(lambda: create_run_folder(output, "compare", recorded))
    if processes.is_main():
        print(data_line(data, [setting.train_size for setting in settings]), file=sys.stderr)
    results = _run(grid, output, launcher, trackers)
    if processes.is_main():
        _show(output, results, recorded)
        if line := no_better_line(data, [run.metrics.get("accuracy") for run in results]):
            print(line, file=sys.stderr)


def _run(grid: Grid, output: Path, launcher: Launcher, trackers: tuple[str, ...]) -> list[RunResult]:
    from deltasam.cli.progress import GridProgress
    from deltasam.lab.folders.files import read_results

    with GridProgress(len(list(grid.cells())), len(read_results(output))) as progress:
        return grid.run(output, watch=progress.show, launcher=launcher, trackers=trackers)


def _show(output: Path, results: list[RunResult], recorded: dict[str, Any]) -> None:
    from rich.console import Console

    from deltasam.lab.compare.after_rows import after_rows
    from deltasam.lab.compare.statistics.compare import compare_runs
    from deltasam.lab.compare.statistics.conclusion import row_conclusion
    from deltasam.lab.compare.text_tables import after_table, row_table
    from deltasam.lab.folders.files import PAGE
    from deltasam.lab.report.page import write_report
    from deltasam.lab.train.results import by_setting

    write_report(results, recorded, output / PAGE)
    console, settings = Console(), by_setting([r.labelled() for r in results])
    for setting, runs in settings.items():
        row = compare_runs(runs)
        if setting and len(settings) > 1:
            console.print(f"\n{setting.title}", style="bold", highlight=False)
        console.print(row_table(row))
        console.print(row_conclusion(row), markup=False, highlight=False)
        if changed := after_rows(row, runs):
            console.print()
            console.print(after_table(row, changed))
    console.print(f"Report: {output / PAGE}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Training examples: deltasam examples {output}", markup=False, highlight=False, soft_wrap=True)
