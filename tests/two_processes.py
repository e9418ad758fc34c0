"""What two processes do together, for test_processes.py: started as by torchrun, each leaves what it found in a folder.

One start does everything, since imports are most of the time. Each process has an output folder of its own, as on two
machines: what only the main process may write must not appear in the other's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner

from deltasam import make_method
from deltasam.cli.app import app
from deltasam.core import collectives
from deltasam.diagnostics.examples import ExampleRecorder
from deltasam.errors import UserError
from deltasam.lab.data import load_data
from deltasam.lab.data.dataset import TextData
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.metrics import evaluate
from deltasam.lab.train.results import StepRecord
from deltasam.lab.train.run import Run
from deltasam.lab.train.tasks import text
from deltasam.per_example.recorder import NotCoveredError

ROWS = 31  # of the 32 for training: the processes take 16 and 15 of them, then 1 and none


def exact_run(data: TextData, config: TrainConfig, method: str) -> Run:
    """A run in double precision: what is left of a difference is the order of sums."""
    text.logits_of = lambda model, inputs, precision: model(**inputs).logits
    run = Run(data, config, method, 0)
    run.model.double()
    if "loop" in method:
        run.method._descend_together = not_covered
    return run


def not_covered(*args: object) -> None:
    raise NotCoveredError("as if")


def weights_and_facts(run: Run, steps: int) -> dict[str, Any]:
    facts = [dataclasses.replace(run.step(), seconds=0.0) for _ in range(steps)]
    weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    return {"weights": weights, "facts": [dataclasses.asdict(f) for f in facts]}


def gradient_and_example_weights(run: Run, method: str) -> dict[str, Any]:
    """Gradient of the first step, weights of the examples of two; the model stays, so that one run will do."""
    found: dict[str, Any] = {}
    run.method, run.examples = make_method(method, run.model), ExampleRecorder(len(run.task))
    run.steps.clear()
    run.model.zero_grad()
    run._update = lambda: found.setdefault("grad", {n: p.grad.clone() for n, p in run.model.named_parameters()})
    run.step()
    run.step()
    return {**found, "rows": run.rows(0), "examples": run.examples.state_dict()}


def kill(folder: Path, port: str, at: int, train: list[str]) -> int:
    """The exit code of a training in a copy of this process; the main one's is killed after some steps.

    Forked, it has the imports already.
    """
    child = os.fork()
    if child == 0:
        os.environ["MASTER_PORT"] = port
        step = Run.step

        def killed(run: Run) -> StepRecord:
            if len(run.steps) == at and processes.is_main():
                os.kill(os.getpid(), signal.SIGKILL)
            return step(run)

        Run.step = killed  # type: ignore[method-assign]
        done = CliRunner().invoke(app, [*train, "--output", str(folder / f"killed{os.environ['RANK']}")])
        os._exit(done.exit_code if "process 1 of 2 has lost another" in done.stderr else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def averaged() -> list[Any]:
    """A gradient that both have, one that the first has, one that none has, and a running mean."""
    layers = [nn.Linear(2, 1, bias=False) for _ in range(3)]
    norm = nn.BatchNorm1d(2, affine=False)
    norm.running_mean.fill_(processes.rank())
    layers[0].weight.grad = torch.full((1, 2), processes.rank() + 1.0)
    if processes.is_main():
        layers[1].weight.grad = torch.ones(1, 2)
    processes.average_gradients(nn.Sequential(*layers, norm))
    gradients = [layer.weight.grad for layer in layers]
    return [None if g is None else g.tolist() for g in gradients] + [norm.running_mean.tolist()]


def refusal(action: Callable[[], object]) -> str:
    try:
        with processes.joined():
            action()
    except UserError as error:
        return str(error)
    return "nothing was refused"


def refuse_on_the_second() -> None:
    if processes.rank() == 1:
        raise UserError("the second cannot")
    processes.gather(None)


def finish_on_the_first_only() -> None:
    if processes.rank() == 1:
        raise UserError("at the very end")


def metrics(run: Run, size: int) -> dict[str, float]:
    return evaluate(run.model, run.task.logits, run.task.evaluation_batches[""], size, "classification")


def commands(tiny: str, reviews: str) -> tuple[list[str], list[str]]:
    """A training and a comparison."""
    common = ["--data", reviews, "--text", "review", "--label", "verdict", "--model", tiny]
    common += ["--batch-size", "7", "--learning-rate", "0.003", "--epochs", "2"]
    train = ["train", *common, "--method", "delta_sam:rho=0.05", "--checkpoint-every", "1"]
    return train, ["compare", *common, "--methods", "erm,per_instance_sam", "--seeds", "0", "--train-size", "16"]


def main(found: dict[str, Any], folder: Path, tiny: str, still: str, reviews: str) -> None:
    rank = processes.rank()
    data = load_data(Path(reviews), text="review", label="verdict")
    config = TrainConfig(model=still, epochs=2, batch_size=ROWS, learning_rate=3e-3)

    run = Run(data, dataclasses.replace(config, model=tiny), "erm", 3)
    found["head"], found["draw"] = run.model.classifier.weight.tolist(), torch.rand(1).item()
    found["metrics"] = {size: metrics(run, size) for size in SIZES}

    found["averaged"] = averaged()
    plain = text.logits_of
    exact = {m: weights_and_facts(exact_run(data, config, m), 2) for m in METHODS}
    run = exact_run(data, config, "erm")
    exact |= {m: gradient_and_example_weights(run, m) for m in PER_PROCESS}
    torch.save(exact, folder / f"exact{rank}.pt")
    text.logits_of = plain

    uneven = dataclasses.replace(config, batch_size=7)
    found["refused"] = {
        "by one": refusal(refuse_on_the_second),
        "at the end": refusal(finish_on_the_first_only),
        "in a step": refusal(Run(data, uneven, "per_instance_sam:m=4", 0).step),
        "seed": refusal(lambda: Run(data, config, "erm", rank)),
        "device": refusal(lambda: Run(data, dataclasses.replace(config, device="meta"), "erm", 0)),
        "wrong length": refusal(lambda: Run(data, dataclasses.replace(config, max_length=500), "erm", 0)),
    }

    def command(*arguments: str, output: str) -> None:
        done = CliRunner().invoke(app, [*arguments, "--output", str(folder / f"{output}{rank}")])
        found[output] = [done.exit_code, done.stdout, done.stderr, repr(done.exception)]

    train, compare = commands(tiny, reviews)
    if rank == 0:
        shutil.copy(folder / "killed0/checkpoint.pt", folder)
        found["steps when killed"] = len(torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["steps"])
    command(*train, "--resume", output="killed")
    command(*train, output="whole")
    command(*train, output="whole")  # again: only the main process can know that it is finished
    found["finished"] = found["whole"][:]
    command(*compare, output="compared")
    command("fidelity", output="fidelity")
    (folder / f"found{rank}.json").write_text(json.dumps(found))


SIZES = [2, 3, 8]  # of 8 rows: 4, 3 batches and 1
METHODS = ["erm", "per_instance_sam:rho=0.1", "per_instance_sam:rho=0.1,unsupported=loop"]
PER_PROCESS = ["sam:rho=0.1", "asam:rho=0.1", "delta_sam:rho=0.1"]

if __name__ == "__main__":
    torch.set_num_threads(1)
    collectives._BUCKET = 1000  # the model is small: gradients are to fill several
    folder, port, *files = sys.argv[1:]
    code = kill(Path(folder), port, 6, commands(files[0], files[2])[0])
    with processes.joined():
        main({"code when killed": code}, Path(folder), *files)
