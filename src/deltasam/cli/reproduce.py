"""``deltasam reproduce``: a whole table of experiments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.folders.files import PAGE, RECORD
from deltasam.lab.train.config import TrainConfig

if TYPE_CHECKING:
    from deltasam.lab.compare.launchers import ProgressCallback
    from deltasam.lab.reproduce.experiment import Experiment


@options.options_from_fields
def reproduce(
    *,
    table: Annotated[str, typer.Argument(help="Which table: glue, sts, summarization or noise.")],
    scale: Annotated[
        str,
        typer.Option(help="paper (GPUs), small (hours on two CPU cores), or a YAML file like the presets."),
    ] = "small",
    output: Annotated[
        Path | None, typer.Option(help="Folder for all runs and the page.", show_default="runs/TABLE-SCALE")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a folder for each data set: cola/ and so on; xsum/; for sts, which has no hub, one with "
            "sts/ and glue/stsb/. Without it: from the hub.",
            show_default=False,
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(help="Only this row of the table; may be given several times.", show_default="all"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the preset, a file to copy and change, and end.")] = False,
    train_layers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Train only the last so many layers, on kept hidden states, whatever the preset says; 0: all.",
            show_default="as the preset says",
        ),
    ] = None,
    training: Annotated[TrainConfig, options.only("device")] = options.TRAINING,
    launch: options.LaunchOptions,
) -> None:
    """Run a table of experiments: tasks x methods, several seeds, hyper-parameters chosen on held-out rows.

    glue, sts and summarization are the delta-SAM paper's; noise is a study of wrong labels, with rivals.

    For each row every method's candidates are tried on a part of the training data; the best of each then runs with
    every seed, and only these runs are judged, on the evaluation data. The page is written anew after each row.

    It can be interrupted or killed at any moment; the same command goes on.

    [bold]Examples[/bold]

    deltasam reproduce glue --data-dir data/glue --workers 2

    deltasam reproduce glue --data-dir data/glue --row SST-2 --row CoLA --output runs/two

    deltasam reproduce noise --data-dir data/glue --row "SST-2, 30 % wrong labels" --workers 2

    deltasam reproduce glue --show > mine.yaml   (add a method, a row)

    deltasam reproduce glue --scale mine.yaml --data-dir data/glue --output runs/mine
    """
    from deltasam.lab.reproduce.experiment import Experiment
    from deltasam.lab.reproduce.preset import load_preset, preset_text
    from deltasam.lab.train import distributed as processes

    if show:
        print(preset_text(table, scale), end="")
        return
    if processes.count() > 1:
        raise UserError("reproduce does runs side by side: start it without torchrun, with --workers or --launcher ray")
    preset = load_preset(table, scale)
    if row:
        preset = preset.only(options.distinct(row, "--row"))
    if train_layers is not None:
        preset = preset.with_training(train_layers=train_layers)
    folder = output or Path("runs") / f"{table}-{Path(scale).stem}"
    device = options.with_device(training).device
    launcher, trackers = launch.find(device)
    with interruptible(lambda: "go on with the same command"):
        experiment = Experiment(preset, folder, data_dir, device)
        experiment.run(show=_bars, launcher=launcher, after_row=lambda: _write(experiment), trackers=trackers)
        _write(experiment)
        _print(experiment)


@contextmanager
def _bars(title: str, runs: int, done: int) -> Iterator[ProgressCallback]:
    from deltasam.cli.progress import GridBars

    Console(stderr=True).print(title, markup=False, highlight=False)
    with GridBars(runs, done) as bars:
        yield bars.show


def _write(experiment: Experiment) -> None:
    from deltasam.lab.folders.record import write_record
    from deltasam.lab.report.page import write_table_page

    record = experiment.record()
    write_record(record, experiment.folder / RECORD)
    facts = {"about": record.about["about"], **record.facts}
    write_table_page(record.rows, record.about["title"], facts, experiment.folder / PAGE)


def _print(experiment: Experiment) -> None:
    from deltasam.lab.compare.statistics.compare import compare
    from deltasam.lab.compare.statistics.conclusion import conclusion
    from deltasam.lab.compare.text_tables import TerminalTable
    from deltasam.lab.train.results import each_no_better

    rows = experiment.record().rows
    table = compare(rows)
    console = Console()
    console.print(TerminalTable(table))
    console.print(conclusion(table), markup=False, highlight=False)
    for name, sentence in each_no_better({row.name: row.results for row in rows}).items():
        console.print(f"{name}: {sentence}", markup=False, highlight=False)
    for what, name in (("Page", PAGE), ("Runs", RECORD)):
        print(f"{what}: {experiment.folder / name}")
