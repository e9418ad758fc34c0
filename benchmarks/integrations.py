"""What a trainer adds to a step: the bare loop, Accelerate and the Hugging Face trainer side by side, in one run.

    python benchmarks/integrations.py                  # MiniLM-L6, erm, sam and per_instance_sam
    python benchmarks/integrations.py --methods sam --shape 16x32 --rounds 30
    python benchmarks/integrations.py --device cuda --precision bf16

All take the same steps (forward and backward passes, clipping, AdamW, a linear schedule) on models of their own. They
take turns, a step each, so a machine that slows down slows them all. What a trainer itself adds shows where nothing is
perturbed: beside ``Trainer`` of transformers as it is. Printed are medians, and medians of ratios within a round, of
the seconds that went by and of those computed; where others use the machine, only the latter tell anything.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial

import torch
import transformers
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import deltasam
from cost import encoder
from deltasam.integrations import hf
from deltasam.integrations.accelerate import AccelerateRuntime
from place import Place, add_options, place_of

Rows = list[dict[str, Tensor]]
PLAIN = "plain Trainer"


def rows_of(examples: int, tokens: int) -> Rows:
    """A batch of random tokens without padding, row by row."""
    ids = torch.randint(1000, 30000, (examples, tokens))
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": torch.randint(0, 3, ())} for i in ids]


def parts(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and the schedule that the trainer makes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, 0, 1000)


def bare(spec: str, rows: Rows, place: Place) -> Iterator[None]:
    """One step for each ``next``."""
    model, collate = encoder().train().to(place.device), transformers.default_data_collator
    optimizer, scheduler = parts(model)
    method = deltasam.make_method(spec, model)

    def forward(batch: dict[str, Tensor]) -> object:
        with place.autocast():
            return model(**batch)

    while True:
        batch = {name: tensor.to(place.device) for name, tensor in collate(rows).items()}
        method.backward(partial(forward, batch))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield


def accelerated(spec: str, rows: Rows, place: Place) -> Iterator[None]:
    """One step for each ``next``."""
    precision = "no" if place.precision == "fp32" else place.precision
    accelerator = Accelerator(cpu=place.kind == "cpu", mixed_precision=precision)
    collate = transformers.default_data_collator
    model = encoder().train()
    optimizer, scheduler = parts(model)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    method, runtime = deltasam.make_method(spec, model), AccelerateRuntime(accelerator)
    while True:
        batch = {name: tensor.to(accelerator.device) for name, tensor in collate(rows).items()}
        with accelerator.accumulate(model):
            method.backward(lambda batch=batch: model(**batch), runtime=runtime)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        yield


class Turns(transformers.TrainerCallback):
    """Lets a trainer, which runs in a thread of its own, take one step at a time."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Wait for the turn; the first wait says that training has begun."""
        self.done.release()
        self.go.acquire()


def trained(kind: type, arguments: type, rows: Rows, place: Place, **options: object) -> Iterator[None]:
    """One step for each ``next``, with all that the trainer does between two of them."""
    turns = Turns()
    args = arguments(
        tempfile.mkdtemp(), max_steps=1000, per_device_train_batch_size=len(rows), learning_rate=2e-5,
        use_cpu=place.kind == "cpu", bf16=place.precision == "bf16", report_to="none", save_strategy="no",
        logging_steps=10, disable_tqdm=True, dataloader_pin_memory=place.kind != "cpu", **options,
    )  # fmt: skip
    trainer = kind(encoder(), args, train_dataset=rows * 100, callbacks=[turns])
    trainer.remove_callback(transformers.PrinterCallback)
    threading.Thread(target=trainer.train, daemon=True).start()
    turns.done.acquire()
    while True:
        turns.go.release()
        turns.done.acquire()
        yield


def clocks(place: Place) -> tuple[float, float]:
    """Seconds that went by, and seconds that this process computed."""
    return place.clock()(), time.process_time()


def measure(contestants: dict[str, Iterator[None]], rounds: int, place: Place) -> dict[str, list[tuple[float, float]]]:
    """Both clocks of every contestant in every round, after two steps each."""
    for step in (*contestants.values(), *contestants.values()):
        next(step)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            start = clocks(place)
            next(step)
            seconds[name].append(tuple(b - a for a, b in zip(start, clocks(place), strict=True)))
    return seconds


def table_of(title: str, seconds: dict[str, list[tuple[float, float]]]) -> Table:
    """Medians, and the median ratio to the first within the rounds, by both clocks."""
    table = Table(title=title, title_justify="left")
    for column in ("", "ms per step", "x bare loop", "CPU ms per step", "x bare loop"):
        table.add_column(column, justify="right" if column else "left")
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        cells = []
        for clock in (0, 1):
            ratio = statistics.median(a[clock] / b[clock] for a, b in zip(times, first, strict=True))
            cells += [f"{1000 * statistics.median(t[clock] for t in times):.1f}", f"{ratio:.3f}"]
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="erm,sam,per_instance_sam", help="specs, comma-separated")
    parser.add_argument("--shape", default="16x32", help="examples x tokens")
    parser.add_argument("--rounds", type=int, default=15)
    add_options(parser)
    options = parser.parse_args()
    place = place_of(options)
    examples, tokens = map(int, options.shape.split("x"))
    rows, console = rows_of(examples, tokens), Console()
    console.print(f"{place}, medians of {options.rounds} rounds")
    for spec in deltasam.split_specs(options.methods):
        contestants = {
            "bare loop": bare(spec, rows, place),
            "Accelerate": accelerated(spec, rows, place),
            "deltasam Trainer": trained(hf.Trainer, hf.TrainingArguments, rows, place, method=spec),
        }
        if spec == "erm":
            contestants[PLAIN] = trained(transformers.Trainer, transformers.TrainingArguments, rows, place)
        console.print(table_of(f"{spec}, {options.shape}", measure(contestants, options.rounds, place)))


if __name__ == "__main__":
    main()
