"""``deltasam diagnose``: every diagnostic on trained checkpoints and one's own data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError, did_you_mean
from deltasam.lab.train.config import PROVENANCE, TrainConfig

if TYPE_CHECKING:
    from deltasam.lab.diagnose import Diagnosis

PAGE = "diagnosis.html"


@options.options_from_fields
def diagnose(
    ctx: typer.Context,
    *,
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Folders that deltasam train has written, or other fine-tuned classifiers: local, or on the hub.",
            show_default=False,
        ),
    ],
    data: options.Data,
    split: Annotated[
        str, typer.Option(help="Which rows: evaluation, or training, whose loss it is that sharpness is usually of.")
    ] = "evaluation",
    examples: Annotated[
        int,
        typer.Option(
            min=2,
            help="Rows to measure on, drawn at random. Sharpness, slice and path use half of them, the plane an "
            "eighth, the Hessian a sixteenth, fidelity three batches and cost one.",
        ),
    ] = 256,
    only: Annotated[
        str | None,
        typer.Option(
            help="Only these diagnostics, separated by commas; a name that is none lists them all.", show_default="all"
        ),
    ] = None,
    skip: Annotated[str | None, typer.Option(help="All but these.", show_default="none")] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods whose fidelity and cost are measured, separated by commas.", show_default="all"),
    ] = None,
    rho: Annotated[
        float, typer.Option(help="Radius of perturbations, and of every method whose spec gives none.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the rows, random directions and dropout masks.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for numbers, pictures and the page.")] = Path("runs/diagnosis"),
    columns: options.DataOptions,
    training: Annotated[
        TrainConfig, options.only("max_length", "batch_size", "precision", "device")
    ] = options.TRAINING,
    config: options.Config = None,
) -> None:
    """Measure the loss around a trained model on your data, and how methods do there.

    Sharpness, gradient norms and curvatures of single examples, the Hessian, calibration, accuracy after rounding,
    pruning and noise, slices of the loss; how close methods come to one perturbation per example, and what they cost.

    Several checkpoints are put side by side, with the loss on the line between the first two.

    The folder gets diagnosis.html, diagnosis.json, examples.csv and a picture per plot, as each is measured. One that
    fails does not stop the others; its traceback is kept and printed, and the exit code is 1.

    Give the data options that the model was trained with, so that the evaluation rows are those that were set aside.

    [bold]Examples[/bold]

    deltasam train --data reviews.csv --text review --label stars --output out

    deltasam diagnose out --data reviews.csv --text review --label stars --output runs/out-diagnosed

    deltasam diagnose out-erm out-sam --data reviews.csv --only sharpness,hessian,path

    deltasam diagnose out --data reviews.csv --split training --examples 64 --skip fidelity,cost
    """
    import matplotlib  # noqa: F401  # before any work: it may not be installed

    from deltasam.cli.progress import DiagnosisBar
    from deltasam.lab import diagnose as diagnoses
    from deltasam.lab.folders.config import check_folder, create_run_folder
    from deltasam.lab.train.provenance import provenance
    from deltasam.lab.train.random_state import deterministic_algorithms, seed_everything

    with interruptible(lambda: _what_is_kept(output)):
        options.check_one_process("diagnose")
        options.check_radius(rho)
        options.check_seed(seed)
        training = options.with_device(training)
        names = _chosen(only, skip)
        specs = None if methods is None else options.methods_at(methods, rho)
        checkpoints = options.distinct(checkpoints, "CHECKPOINT")
        choices = options.resolved(ctx.params, training, diagnostics=names, methods=specs, checkpoints=checkpoints)
        settings = diagnoses.Settings(
            split=split,
            examples=examples,
            batch_size=training.batch_size,
            max_length=training.max_length,
            precision=training.precision,
            device=training.device,
            rho=rho,
            methods=None if specs is None else tuple(specs),
            seed=seed,
        )
        check_folder(output, "diagnose", choices)
        rows = columns.load(data)
        subjects = diagnoses.load_subjects(checkpoints, rows, settings)
        weights = {subject.name: subject.weights_digest() for subject in subjects}
        recorded = {**choices, PROVENANCE: {**provenance(rows), "weights_sha256": weights}}
        create_run_folder(output, "diagnose", recorded)
        seed_everything(seed)
        with DiagnosisBar(diagnoses.count(subjects, names)) as bar, deterministic_algorithms():
            diagnosis = diagnoses.diagnose(subjects, names, output, recorded, bar.show)
            bar.end("writing the page")
            diagnoses.write_diagnosis_page(diagnosis, output / PAGE)
        _show(diagnosis, output)


def _what_is_kept(output: Path) -> str:
    from deltasam.lab.diagnose.diagnosis import RESULTS

    if (output / RESULTS).exists():
        return f"what was measured so far is in {output}"
    return "nothing is measured yet, start again with the same command"


def _chosen(only: str | None, skip: str | None) -> list[str]:
    from deltasam.lab.diagnose import diagnostic_names

    known = diagnostic_names()
    wanted = known if only is None else _known(only, "--only", known)
    unwanted = [] if skip is None else _known(skip, "--skip", known)
    chosen = [name for name in known if name in wanted and name not in unwanted]
    if not chosen:
        raise UserError("--only and --skip leave no diagnostic; leave one of them out")
    return chosen


def _known(text: str, option: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(
                f"{option} {name}: no such diagnostic; there are {', '.join(known)}{did_you_mean(name, known)}"
            )
    return options.distinct(names, option)


def _show(diagnosis: Diagnosis, output: Path) -> None:
    from deltasam.cli.diagnosis_table import diagnosis_table, readings

    console = Console()
    console.print(diagnosis_table(diagnosis))
    for paragraph in readings(diagnosis):
        console.print(paragraph)
    print(f"Page: {output / PAGE}")
    for name, text in diagnosis.failures.items():
        print(f"\nfailed: {name}\n{text.rstrip()}", file=sys.stderr)
    if diagnosis.failures:
        raise typer.Exit(1)
