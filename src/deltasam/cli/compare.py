"""``deltasam compare``: several methods, several seeds, one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.train.config import PROVENANCE, TrainConfig

if TYPE_CHECKING:
    from deltasam.lab.compare.grid import Grid
    from deltasam.lab.compare.launchers import Launcher
    from deltasam.lab.data.dataset import TextData
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.train.results import RunResult

REPORT = "report.html"
ALL = "all"
SIZE = 320
"""Training examples per run unless told: so many, or all where there are fewer."""
_TRAINING = TrainConfig(epochs=2, learning_rate=2e-4, device="auto")


@options.options_from_fields
def compare(
    ctx: typer.Context,
    *,
    source: options.Source = None,
    data: options.SourceOption = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas (see: deltasam methods); one may have training options of its own, as "
            "erm+epochs=4."
        ),
    ] = "erm,sam,delta_sam,per_instance_sam",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas: a run of each method per seed.")] = "0,1",
    train_size: Annotated[
        str | None,
        typer.Option(
            help="Training examples per run, drawn anew for each seed; all for all of them. Several sizes, "
            "100,500,all, give a comparison each; for one seed a smaller set is part of the larger ones.",
            show_default="320, or all if there are fewer",
            rich_help_panel="Data",
        ),
    ] = None,
    label_noise: Annotated[
        str | None,
        typer.Option(
            help=f"{options.NOISE_HELP} Several shares, 0,0.2,0.4, give a comparison each.",
            show_default="none",
            rich_help_panel="Data",
        ),
    ] = None,
    noisy_selection: options.NoisySelection = False,
    output: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("runs/demo"),
    columns: options.DataOptions,
    training: Annotated[TrainConfig, options.without("patience")] = _TRAINING,
    after: Annotated[
        bool,
        typer.Option(
            "--after",
            help="Measure each final model with its weights rounded to 8, 4 and 3 bits, with 30, 50 and 60 % of them "
            "set to 0, and with noise: 17 evaluations more per run.",
        ),
    ] = False,
    checkpoint_every: options.CheckpointEvery = 0,
    launch: options.LaunchOptions,
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
    with interruptible(lambda: "go on with the same command"):
        from deltasam.lab.train import distributed as processes

        source = options.source_of(source, data)
        training = options.with_device(training)
        axes: dict[str, list[Any]] = {"train_size": _sizes(train_size), "label_noise": _noises(label_noise)}
        recorded = {name: _recorded(values) for name, values in axes.items()}
        several = {"methods": _methods(methods), "seeds": _seeds(seeds), **recorded}
        choices = options.resolved(ctx.params, training, data=source, **several)
        if processes.count() > 1 and (launch.launcher != "local" or launch.workers not in (None, 1)):
            raise UserError(
                "--workers and --launcher do runs side by side, torchrun does each run with all processes: use one"
            )
        launcher, trackers = launch.find(training.device)
        _compare(output, choices, axes, columns, training, checkpoint_every, launcher, trackers)


def _methods(text: str) -> list[str]:
    from deltasam.lab.train.variant import full_spec
    from deltasam.spec import split_specs

    return options.distinct([full_spec(spec) for spec in split_specs(text)], "--methods")


def _seeds(text: str) -> list[int]:
    seeds = options.numbers(text, "--seeds", int, "whole numbers separated by commas, as in 0,1,2")
    return [options.check_seed(seed, "--seeds") for seed in seeds]


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
    columns: options.DataOptions,
    training: TrainConfig,
    checkpoint_every: int,
    launcher: Launcher,
    trackers: tuple[str, ...],
) -> None:
    from deltasam.cli.data_text import data_line, majority_class_note
    from deltasam.lab.compare.grid import Grid
    from deltasam.lab.folders.output import check_folder, create_run_folder
    from deltasam.lab.train import distributed as processes
    from deltasam.lab.train.provenance import provenance

    processes.on_main(lambda: check_folder(output, choices))
    data = columns.load(choices["data"])
    settings = _settings(data, axes, choices["noisy_selection"])
    grid = Grid(
        data, training, choices["methods"], choices["seeds"], settings, checkpoint_every, after=choices["after"]
    )
    grid.check()
    recorded = {**choices, PROVENANCE: provenance(data)}
    processes.on_main(lambda: create_run_folder(output, recorded))
    if processes.is_main():
        print(data_line(data, [setting.train_size for setting in settings]), file=sys.stderr)
    results = _run(grid, output, launcher, trackers)
    if processes.is_main():
        _show(output, results, recorded)
        if note := majority_class_note(data, [run.metrics.get("accuracy") for run in results]):
            print(note, file=sys.stderr)


def _run(grid: Grid, output: Path, launcher: Launcher, trackers: tuple[str, ...]) -> list[RunResult]:
    from deltasam.cli.progress import GridBars
    from deltasam.lab.compare.grid import read_results

    with GridBars(len(list(grid.run_keys())), len(read_results(output))) as bars:
        return grid.run(output, watch=bars.show, launcher=launcher, trackers=trackers)


def _show(output: Path, results: list[RunResult], recorded: dict[str, Any]) -> None:
    from deltasam.lab.compare.after_rows import after_rows
    from deltasam.lab.compare.statistics.statistics import compare, conclusion
    from deltasam.lab.compare.statistics.terminal import after_table, comparison_table
    from deltasam.lab.report import write_report
    from deltasam.lab.train.results import by_setting

    write_report(results, recorded, output / REPORT)
    console, settings = Console(), by_setting([r.labelled() for r in results])
    for setting, runs in settings.items():
        comparison = compare(runs)
        if setting and len(settings) > 1:
            console.print(f"\n{setting.title}", style="bold", highlight=False)
        console.print(comparison_table(comparison))
        console.print(conclusion(comparison), markup=False, highlight=False)
        if rows := after_rows(comparison, runs):
            console.print()
            console.print(after_table(comparison, rows))
    print(f"Report: {output / REPORT}")
    print(f"Training examples: deltasam examples {output}")
