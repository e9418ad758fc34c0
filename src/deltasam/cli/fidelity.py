"""``deltasam fidelity``: how close each method comes to one perturbation per example."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.train.config import PROVENANCE, TrainConfig

if TYPE_CHECKING:
    from deltasam.core.closure import Output
    from deltasam.lab.data.dataset import TextData
    from deltasam.lab.train.run import Run

RESULTS = "fidelity.json"
_TRAINING = TrainConfig(learning_rate=2e-4, device="auto")
_PLAIN = options.without("train_layers", "epochs", "label_smoothing", "last_layer_l2", "patience", "evaluate_every")


@options.options_from_fields
def fidelity(
    ctx: typer.Context,
    *,
    source: options.Source = None,
    data: options.SourceOption = None,
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
    columns: options.DataOptions,
    training: Annotated[TrainConfig, _PLAIN] = _TRAINING,
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
    from deltasam import diagnostics
    from deltasam.cli.fidelity_table import fidelity_table, meaning
    from deltasam.core.files import write_atomically
    from deltasam.lab.folders.config import check_folder, create_run_folder
    from deltasam.lab.train.jsonable import to_jsonable
    from deltasam.lab.train.provenance import provenance
    from deltasam.lab.train.random_state import deterministic_algorithms

    with interruptible(lambda: "nothing is kept, start again"):
        options.check_one_process("fidelity")
        options.check_radius(rho)
        options.check_seed(seed)
        training = options.with_device(training)
        specs = options.methods_at(methods, rho)
        choices = options.resolved(ctx.params, training, data=options.source_of(source, data), methods=specs)
        if output is not None:
            check_folder(output, "fidelity", choices)
        rows = columns.load(choices["data"])
        with deterministic_algorithms():
            run = _trained(rows, training, warmup_steps, seed)
            try:
                results = diagnostics.fidelity(run.model, _closures(run, batches), specs, rho=rho, floor=floor)
            except ValueError as error:
                raise UserError(str(error)) from error
        if output is not None:
            create_run_folder(output, "fidelity", {**choices, PROVENANCE: provenance(rows)})
            text = json.dumps(to_jsonable(results), indent=2, allow_nan=False)  # each with its means and spreads
            write_atomically(output / RESULTS, text + "\n")
        Console().print(fidelity_table(results, batches))
        Console().print(meaning(results), markup=False, highlight=False)
        if output is not None:
            print(f"Numbers: {output / RESULTS}")


def _trained(data: TextData, training: TrainConfig, steps: int, seed: int) -> Run:
    """A run after some steps of plain training, over which the whole schedule of the learning rate is spread."""
    from deltasam.lab.train.run import Run

    epochs = max(1, math.ceil(steps * training.batch_size / len(data.train)))
    run = Run(data, dataclasses.replace(training, epochs=epochs), "erm", seed)
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
    return track(steps, what, total=total, console=Console(stderr=True), disable=total == 0)
