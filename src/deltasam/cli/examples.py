"""``deltasam examples``: which training examples a run weighted, and which had large gradients or losses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deltasam.cli import options
from deltasam.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def examples(
    folder: Annotated[
        Path,
        typer.Argument(help="Output of deltasam train or compare, or the folder final of a row of deltasam reproduce."),
    ],
    by: Annotated[
        str,
        typer.Option(
            help="weight: of the example in the perturbation (methods that weight examples). norm: of its gradient "
            "(methods that compute it). loss: over training (every method)."
        ),
    ] = "loss",
    top: Annotated[int, typer.Option(min=1, help="How many examples of each run to show, largest first.")] = 20,
    method: Annotated[
        str | None, typer.Option(help="Only runs of this method: its name, or its spec.", show_default="all")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Only runs with this seed.", show_default="the first of each method")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="CSV file for every example of these runs, ranked, with all that was recorded."),
    ] = None,
) -> None:
    """Rank the training examples of finished runs: which are hard, which may be labelled wrong.

    Every run records, at no extra cost, the loss and the prediction of each example each time it is seen, and the
    method's weight and the gradient norm where the method computes them. An example whose loss stays high and that is
    predicted as another class at every visit is worth reading: it may be labelled wrong.

    Where labels were made wrong on purpose (--label-noise), it is also measured how well each ranking finds them.

    [bold]Examples[/bold]

    deltasam examples runs/demo

    deltasam examples runs/demo --by weight --method delta_sam --top 10

    deltasam examples runs/demo --by norm --seed 1 --output suspects.csv

    deltasam compare --label-noise 0.3 --output runs/noise

    deltasam examples runs/noise
    """
    from deltasam.diagnostics.examples import NUMBERS, inspect_examples
    from deltasam.diagnostics.examples.csv_file import to_csv, write_csv

    options.check_one_process("examples")
    if by not in NUMBERS:
        raise UserError(f"--by {by}: must be {', '.join(NUMBERS)}")
    ranked = inspect_examples(folder, by=by, method=method, seed=seed)
    if output is not None:
        write_csv(output, to_csv(ranked))
    console = Console()
    _print_rankings(console, ranked, by, top)
    _print_detection(console, folder, method, seed)
    if output is not None:
        print(f"Examples: {output}")


def _print_rankings(console: Console, ranked: pd.DataFrame, by: str, top: int) -> None:
    """A table for each method in each setting, of its first seed."""
    from deltasam.cli.examples_table import MEANING, ranking_table

    keys = [name for name in ("train_size", "label_noise", "method") if name in ranked]
    for _, runs in ranked.groupby(keys, sort=False):
        console.print(ranking_table(runs[runs["seed"] == runs["seed"].iloc[0]], by, top))
        console.print()
    console.print(MEANING[by], markup=False, highlight=False)


def _print_detection(console: Console, folder: Path, method: str | None, seed: int | None) -> None:
    """A table for each setting with label noise."""
    from deltasam.cli.examples_table import DETECTION, detection_table
    from deltasam.lab.compare.statistics.compare import compare_runs
    from deltasam.lab.folders.examples import kept_runs
    from deltasam.lab.train.results import by_setting

    results = [run.result.labelled() for run in kept_runs(folder, method, seed) if run.result.detection]
    for setting, runs in by_setting(results).items():
        console.print()
        console.print(detection_table(setting.title if setting else "", compare_runs(runs).begun))
    if results:
        console.print(DETECTION, markup=False, highlight=False)
