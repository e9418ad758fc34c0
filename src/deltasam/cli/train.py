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
from deltasam.cli.data_text import data_line, no_better_line
from deltasam.cli.errors import interruptible
from deltasam.errors import UserError
from deltasam.lab.folders.files import METRICS
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import PROVENANCE, TrainConfig
from deltasam.lab.train.provenance import provenance

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import TextData
    from deltasam.lab.train.results import RunResult
    from deltasam.lab.train.run import Run


def train(
    ctx: typer.Context,
    data: Annotated[str, typer.Option(help=options.SOURCE_HELP, rich_help_panel="Data")],
    output: Annotated[Path, typer.Option(help="New folder for the model and its record.")],
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    eval_data: options.EvalData = None,
    eval_size: options.EvalSize = 0.2,
    task: options.Task = "classification",
    label_noise: options.LabelNoise = None,
    noisy_selection: options.NoisySelection = False,
    method: Annotated[str, typer.Option(help="A method, as name:key=value (see: deltasam methods).")] = "sam",
    seed: Annotated[int, typer.Option(help="Of the head, the data order and the dropout masks.")] = 0,
    model: options.Model = TrainConfig.model,
    layers: options.Layers = TrainConfig.layers,
    train_layers: options.TrainLayers = TrainConfig.train_layers,
    max_length: options.MaxLength = TrainConfig.max_length,
    epochs: options.Epochs = TrainConfig.epochs,
    batch_size: options.BatchSize = TrainConfig.batch_size,
    learning_rate: options.LearningRate = TrainConfig.learning_rate,
    weight_decay: options.WeightDecay = TrainConfig.weight_decay,
    warmup: options.Warmup = TrainConfig.warmup,
    label_smoothing: options.LabelSmoothing = TrainConfig.label_smoothing,
    last_layer_l2: options.LastLayerL2 = TrainConfig.last_layer_l2,
    patience: Annotated[
        int, typer.Option(help="Stop after this many evaluations without a new best; 0: never.")
    ] = TrainConfig.patience,
    evaluate_every: options.EvaluateEvery = TrainConfig.evaluate_every,
    precision: options.Precision = TrainConfig.precision,
    device: options.Device = "auto",
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
    options.usable_seed(seed)
    spec = options.full_spec(method)
    settings = options.train_config(ctx.params)
    choices = options.resolved(ctx.params, settings, method=spec, label_noise=label_noise or None)
    trackers = options.trackers(track)
    processes.on_main(lambda: _check_output(output, choices, resume))
    with interruptible(lambda: _how_to_go_on(output)):
        _fit(output, choices, _data(choices), settings, checkpoint_every, trackers)


def _data(choices: dict[str, Any]) -> TextData:
    from deltasam.lab.data.noise import add_label_noise, with_noisy_selection

    data, rate, seed = options.load(choices), choices["label_noise"] or 0.0, choices["seed"]
    if choices["noisy_selection"]:
        data = with_noisy_selection(data, rate, seed)
    return add_label_noise(data, rate, seed)


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
    from deltasam.lab.folders.files import CONFIG

    if (output / METRICS).exists():
        return f"the training is finished; model in {output}"
    if (output / CONFIG).exists():
        return f"go on with the same command and --resume (output {output})"
    return "nothing is kept yet, start again with the same command"


def _fit(
    output: Path,
    choices: dict[str, Any],
    data: TextData,
    settings: TrainConfig,
    every: int,
    trackers: tuple[str, ...],
) -> None:
    from deltasam.cli.progress import RunProgress
    from deltasam.lab.data.setting import Setting
    from deltasam.lab.folders.config import create_run_folder
    from deltasam.lab.folders.files import CHECKPOINT
    from deltasam.lab.train.checkpoint import resume_run, save_when_due
    from deltasam.lab.train.run import Run, train_run
    from deltasam.lab.train.tracking import tracked

    run = Run(data, settings, choices["method"], choices["seed"])
    recorded = {**choices, PROVENANCE: provenance(data)}
    processes.on_main(lambda: create_run_folder(output, "train", recorded))
    checkpoint = output / CHECKPOINT
    if processes.on_main(checkpoint.exists):
        resume_run(checkpoint, run)

    if processes.is_main():
        print(data_line(data, [len(data.train)]), file=sys.stderr)

    def on_step(run: Run) -> None:
        progress.advance_step(run)
        tracking.send()
        save_when_due(checkpoint, run, every)

    with tracked(run, output.name, trackers, output) as tracking, RunProgress() as progress:
        progress.begin(run)
        result = train_run(run, on_step=on_step, on_evaluation=lambda run: _keep_best(output, run))
    setting = Setting(len(data.train), choices["label_noise"] or 0.0, choices["noisy_selection"])
    if processes.is_main():
        best = _finish(output, run, dataclasses.replace(result, setting=setting))
        if line := no_better_line(data, [best.get("accuracy")]):
            print(line, file=sys.stderr)
        checkpoint.unlink(missing_ok=True)


def _keep_best(output: Path, run: Run) -> None:
    from deltasam.lab.train.saved_model import save_model

    if processes.is_main() and run.best is run.evaluations[-1]:
        save_model(output, run)


def _finish(output: Path, run: Run, result: RunResult) -> dict[str, float]:
    """Write the record; gives the metrics of the model that was kept."""
    from deltasam.core.files import write_atomically
    from deltasam.diagnostics.examples.csv_file import write_csv
    from deltasam.lab.folders.files import EXAMPLES, HISTORY

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
