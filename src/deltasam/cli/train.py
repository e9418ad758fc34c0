"""``deltasam train``: one model, trained with one method."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltasam.cli import options
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.folders.files import CHECKPOINT, CONFIG, EXAMPLES, HISTORY, METRICS
from deltasam.lab.train.config import PROVENANCE, TrainConfig

if TYPE_CHECKING:
    from deltasam.lab.train.results import RunResult
    from deltasam.lab.train.run import Run


@options.options_from_fields
def train(
    ctx: typer.Context,
    *,
    data: options.Data,
    output: Annotated[Path, typer.Option(help="New folder for the model and its record.")],
    columns: options.DataOptions,
    label_noise: Annotated[
        float | None, typer.Option(help=options.NOISE_HELP, show_default="none", rich_help_panel="Data")
    ] = None,
    noisy_selection: options.NoisySelection = False,
    method: Annotated[str, typer.Option(help="A method, as name:key=value (see: deltasam methods).")] = "sam",
    seed: Annotated[int, typer.Option(help="Of the head, the data order and the dropout masks.")] = 0,
    training: TrainConfig = options.TRAINING,
    checkpoint_every: options.CheckpointEvery = 0,
    track: options.Track = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    config: options.Config = None,
) -> None:
    """Fine-tune a model with a method, and keep the best by the evaluation metric.

    AutoModelForSequenceClassification.from_pretrained loads the output folder.

    The same command gives bitwise the same model on the same machine. Started by torchrun or accelerate launch, several
    processes share each step.

    [bold]Examples[/bold]

    deltasam train --data reviews.csv --text review --label stars --output out

    deltasam train --data reviews.csv --method per_instance_sam:rho=0.01 --epochs 5 --patience 2 --output out

    deltasam train --config out/config.yaml --seed 1 --output out-seed-1

    deltasam train --data reviews.csv --track tensorboard --output out

    deltasam train --data reviews.csv --label-noise 0.2 --method delta_sam --output out-noise

    torchrun --nproc-per-node 2 -m deltasam train --data reviews.csv --output out
    """
    from deltasam.cli.data_text import data_line, majority_class_note
    from deltasam.cli.progress import RunBar
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.folders.config import create_run_folder
    from deltasam.lab.train import distributed as processes
    from deltasam.lab.train.checkpoint import train_resumably
    from deltasam.lab.train.provenance import provenance
    from deltasam.lab.train.run import Run
    from deltasam.lab.train.saved_model import save_model
    from deltasam.lab.train.variant import method_spec

    def keep_best(run: Run) -> None:
        if processes.is_main() and run.best is run.evaluations[-1]:
            save_model(output, run)

    with interruptible(lambda: _how_to_go_on(output)):
        options.check_seed(seed)
        spec = method_spec(method)
        training = options.with_device(training)
        choices = options.resolved(ctx.params, training, method=spec, label_noise=label_noise or None)
        trackers = options.trackers(track)
        processes.on_main(lambda: _check_output(output, choices, resume))
        clean = columns.load(data)
        setting = Setting(len(clean.train), label_noise or 0.0, noisy_selection)
        rows = setting.with_noise(clean, seed)
        run = Run(rows, training, spec, seed)
        recorded = {**choices, PROVENANCE: provenance(rows)}
        processes.on_main(lambda: create_run_folder(output, "train", recorded))
        if processes.is_main():
            print(data_line(rows, [len(rows.train)]), file=sys.stderr)
        checkpoint = output / CHECKPOINT
        with RunBar() as bar:
            result = train_resumably(
                run,
                checkpoint,
                every=checkpoint_every,
                name=output.name,
                trackers=trackers,
                on_progress=bar.show,
                on_evaluation=keep_best,
            )
        if processes.is_main():
            best = _finish(output, run, dataclasses.replace(result, setting=setting))
            if note := majority_class_note(rows, [best.get("accuracy")]):
                print(note, file=sys.stderr)
            checkpoint.unlink(missing_ok=True)


def _check_output(output: Path, choices: dict[str, Any], resume: bool) -> None:
    from deltasam.lab.folders.config import check_folder

    begun = check_folder(output, "train", choices)
    if resume and not begun:
        raise UserError(f"there is nothing to resume in {output}; leave out --resume")
    if begun and (output / METRICS).exists():
        raise UserError(f"the training in {output} is finished; choose another --output")
    if begun and not resume:
        raise UserError(f"{output} holds this training, unfinished; add --resume, or choose another --output")


def _how_to_go_on(output: Path) -> str:
    """What is kept of a training that was stopped, and which command goes on."""
    if (output / METRICS).exists():
        return f"the training is finished; model in {output}"
    if (output / CONFIG).exists():
        return f"go on with the same command and --resume (output {output})"
    return "nothing is kept yet, start again with the same command"


def _finish(output: Path, run: Run, result: RunResult) -> dict[str, float]:
    """Write the record; gives the metrics of the model that was kept."""
    from deltasam.core.files import write_atomically
    from deltasam.diagnostics.examples.csv_file import write_csv

    if run.diverged:
        raise UserError(
            f"{result.method} diverged at step {len(run.steps)}: the loss is not finite; "
            f"use a smaller --learning-rate or rho"
        )
    if run.best is None:
        raise UserError(
            f"{result.metric} was never defined: all labels or all predictions of the evaluation rows are equal; "
            f"evaluate on other rows, or train longer"
        )
    record = {"method": result.method, "metric": result.metric, "best": asdict(run.best)}
    record["last"] = asdict(result.evaluations[-1])
    write_csv(output / EXAMPLES, result.table)
    write_atomically(output / HISTORY, result.to_json() + "\n")
    write_atomically(output / METRICS, json.dumps(record, indent=2) + "\n")
    value = run.best.metrics[result.metric]
    best = f", the best of {len(run.evaluations)} evaluations" if len(run.evaluations) > 1 else ""
    print(f"{result.metric} {value:.4f} at step {run.best.step} of {len(run.steps)}{best}; model in {output}")
    return run.best.metrics
