"""``deltasam fidelity``: how close each method comes to one perturbation per example."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deltasam
from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import PROVENANCE, TrainConfig
from deltasam.lab.train.provenance import provenance

if TYPE_CHECKING:
    from deltasam.core.closure import Output
    from deltasam.diagnostics import Fidelity
    from deltasam.lab.data.dataset import TextData
    from deltasam.lab.train.run import Run

RESULTS = "fidelity.json"


def fidelity(
    ctx: typer.Context,
    source: Annotated[str | None, typer.Argument(help=options.SOURCE_HELP, show_default="demo")] = None,
    data: Annotated[str | None, typer.Option(help="The same as SOURCE.", rich_help_panel="Data")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, separated by commas (see: deltasam methods).", show_default="all but the exact one"
        ),
    ] = None,
    rho: Annotated[float, typer.Option(help="Radius, for every method whose spec gives none.")] = 0.02,
    batches: Annotated[int, typer.Option(min=1, help="Batches to measure on.")] = 8,
    floor: Annotated[
        bool,
        typer.Option(
            help="Also search for the best that weights of the examples can do (some seventy passes a batch)."
        ),
    ] = True,
    warmup_steps: Annotated[
        int, typer.Option(min=0, help="Steps of plain training first: a gradient at a new head is special. 0: none.")
    ] = 60,
    seed: Annotated[int, typer.Option(help="Of the head, the data order and the dropout masks.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for the numbers, batch by batch.")] = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    eval_data: options.EvalData = None,
    eval_size: options.EvalSize = 0.2,
    task: options.Task = "classification",
    model: options.Model = TrainConfig.model,
    layers: options.Layers = TrainConfig.layers,
    max_length: options.MaxLength = TrainConfig.max_length,
    batch_size: options.BatchSize = TrainConfig.batch_size,
    learning_rate: options.LearningRate = 2e-4,
    weight_decay: options.WeightDecay = TrainConfig.weight_decay,
    warmup: options.Warmup = TrainConfig.warmup,
    precision: options.Precision = TrainConfig.precision,
    device: options.Device = "auto",
    config: options.Config = None,
) -> None:
    """Measure how close each method's gradient comes to that of one perturbation per example.

    The model is trained plainly for a few steps, then every method's gradient is taken on the next batches of the
    training data, with the same dropout masks, and compared with the exact one. The floor is how near a common
    perturbation can come at best: weights of the examples, as delta_sam has them, can do no more.

    [bold]Examples[/bold]

    deltasam fidelity

    deltasam fidelity reviews.csv --text review --label stars --methods sam,delta_sam,delta_sam:weights=slopes

    deltasam fidelity reviews.csv --model out --warmup-steps 0 --batches 20 --output runs/fidelity
    """
    if processes.count() > 1:
        raise UserError("fidelity works in one process; start it without torchrun or accelerate launch")
    if not 0 < rho < math.inf:
        raise UserError(f"--rho {rho}: must be a finite number above 0")
    options.usable_seed(seed)
    params = {k: v for k, v in ctx.params.items() if k != "source"} | {"data": options.source_of(source, data)}
    settings = options.train_config(params)
    choices = options.resolved(params, settings, methods=options.methods_at(methods, rho))
    with interruptible(lambda: "nothing is kept, start again"):
        _measure_and_show(output, choices, settings)


def _measure_and_show(output: Path | None, choices: dict[str, Any], settings: TrainConfig) -> None:
    from rich.console import Console

    from deltasam.cli.fidelity_table import fidelity_table, meaning
    from deltasam.lab.folders.config import check_folder

    if output is not None:
        check_folder(output, "fidelity", choices)
    data = options.load(choices)
    results = _measure(data, settings, choices)
    if output is not None:
        _save(output, results, {**choices, PROVENANCE: provenance(data)})
    console = Console()
    console.print(fidelity_table(results, choices["batches"]))
    console.print(meaning(results), markup=False, highlight=False)
    if output is not None:
        console.print(f"Numbers: {output / RESULTS}", markup=False, highlight=False, soft_wrap=True)


def _measure(data: TextData, settings: TrainConfig, choices: dict[str, Any]) -> list[Fidelity]:
    from deltasam.diagnostics import fidelity
    from deltasam.lab.train.random_state import deterministic_algorithms

    run = _trained(data, settings, choices["warmup_steps"], choices["seed"])
    closures = _closures(run, choices["batches"])
    try:
        with deterministic_algorithms():
            return fidelity(run.model, closures, choices["methods"], rho=choices["rho"], floor=choices["floor"])
    except ValueError as error:
        raise UserError(str(error)) from error


def _trained(data: TextData, settings: TrainConfig, steps: int, seed: int) -> Run:
    """A run after some steps of plain training, over which the whole schedule of the learning rate is spread."""
    from deltasam.lab.train.random_state import deterministic_algorithms
    from deltasam.lab.train.run import Run

    epochs = max(1, math.ceil(steps * settings.batch_size / len(data.train)))
    run = Run(data, dataclasses.replace(settings, epochs=epochs), deltasam.ERM.name, seed)
    with deterministic_algorithms():
        for _ in _progress(range(steps), "plain training", steps):
            run.step()
            if run.diverged:
                raise UserError(
                    f"plain training diverged at step {len(run.steps)}: the loss is not finite; use a smaller "
                    f"--learning-rate or fewer --warmup-steps"
                )
    return run


def _closures(run: Run, batches: int) -> Iterator[Callable[[], Output]]:
    """The batches that the training would see next."""
    done = len(run.steps)
    yield from (run.closure(run.rows(step)) for step in _progress(range(done, done + batches), "measuring", batches))


def _progress(steps: Iterable[int], what: str, total: int) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(steps, what, total=total, console=Console(stderr=True), disable=total == 0)


def _save(output: Path, results: list[Fidelity], recorded: dict[str, Any]) -> None:
    from deltasam.core.files import write_atomically
    from deltasam.lab.folders.config import create_run_folder
    from deltasam.lab.train.jsonable import to_jsonable

    create_run_folder(output, "fidelity", recorded)
    found = to_jsonable(results)  # each with its means and spreads
    write_atomically(output / RESULTS, json.dumps(found, indent=2, allow_nan=False) + "\n")
