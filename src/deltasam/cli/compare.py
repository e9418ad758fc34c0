"""``deltasam compare``: several methods, several seeds, one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.train.config import PROVENANCE, TrainConfig

if TYPE_CHECKING:
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.train.results import RunResult

ALL = "all"
SIZE = 320
"""Training examples per run by default; all where the data has fewer."""
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
    from deltasam.cli.data_text import data_line, majority_class_note
    from deltasam.cli.progress import GridBars
    from deltasam.lab.compare.grid import Grid
    from deltasam.lab.folders.config import check_folder, create_run_folder
    from deltasam.lab.folders.files import read_results
    from deltasam.lab.train import distributed as processes
    from deltasam.lab.train.provenance import provenance
    from deltasam.lab.train.variant import full_spec
    from deltasam.spec import split_specs

    with interruptible(lambda: "go on with the same command"):
        training = options.with_device(training)
        specs = options.distinct([full_spec(spec) for spec in split_specs(methods)], "--methods")
        sizes, noises = _sizes(train_size), _noises(label_noise)
        choices = options.resolved(
            ctx.params,
            training,
            data=options.source_of(source, data),
            methods=specs,
            seeds=_seeds(seeds),
            train_size=_recorded(sizes),
            label_noise=_recorded(noises),
        )
        if processes.count() > 1 and (launch.launcher != "local" or launch.workers not in (None, 1)):
            raise UserError(
                "--workers and --launcher do runs side by side, torchrun does each run with all processes: use one"
            )
        launcher, trackers = launch.find(training.device)
        processes.on_main(lambda: check_folder(output, "compare", choices))
        rows = columns.load(choices["data"])
        settings = _settings(len(rows.train), sizes, noises, noisy_selection)
        grid = Grid(rows, training, specs, choices["seeds"], settings, checkpoint_every, after=after)
        grid.check()
        recorded = {**choices, PROVENANCE: provenance(rows)}
        processes.on_main(lambda: create_run_folder(output, "compare", recorded))
        if processes.is_main():
            print(data_line(rows, [setting.train_size for setting in settings]), file=sys.stderr)
        with GridBars(len(list(grid.run_keys())), len(read_results(output))) as bars:
            results = grid.run(output, watch=bars.show, launcher=launcher, trackers=trackers)
        if processes.is_main():
            _show(output, results, recorded)
            if note := majority_class_note(rows, [run.metrics.get("accuracy") for run in results]):
                print(note, file=sys.stderr)


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


def _recorded(values: Sequence[int | float | str | None]) -> object:
    """A single value as itself, and no noise as None: the form of folders from before several could be given."""
    return values if len(values) > 1 else (values[0] or None)


def _settings(
    rows: int, sizes: Sequence[int | str | None], noises: Sequence[float], noisy_selection: bool
) -> list[Setting]:
    from deltasam.lab.data.setting import Setting

    known = [rows if size == ALL else min(SIZE, rows) if size is None else int(size) for size in sizes]
    distinct = options.distinct(known, "--train-size")
    return [Setting(size, noise, noisy_selection) for size in distinct for noise in noises]


def _show(output: Path, results: list[RunResult], recorded: dict[str, Any]) -> None:
    from deltasam.lab.compare.after_rows import after_rows
    from deltasam.lab.compare.statistics.compare import compare_runs
    from deltasam.lab.compare.statistics.conclusion import row_conclusion
    from deltasam.lab.compare.statistics.last_epoch import last_epoch_sentence
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
        if later := last_epoch_sentence(runs):
            console.print(later, markup=False, highlight=False)
        if changed := after_rows(row, runs):
            console.print()
            console.print(after_table(row, changed))
    print(f"Report: {output / PAGE}")
    print(f"Training examples: deltasam examples {output}")
