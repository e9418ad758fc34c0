"""What the gradient norms of single examples cost: ours beside opacus' ghost clipping, over a forward and backward.

    pip install opacus
    OMP_NUM_THREADS=1 python benchmarks/norms.py
    python benchmarks/norms.py --shapes 16x32,8x128 --record benchmarks/results/norms.json

MiniLM-L6 without dropout, the same batch in every round, in a loop as one calls it: what a first call checks is known
in later ones. Opacus' time is that of a forward and a backward that leaves norms behind; it forms the gradients of
LayerNorms and embeddings. Before the clock runs, both are asked for the norms, which must agree.
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
from rich.table import Table
from torch import Tensor, nn

import deltasam
from cost import CLOCKS, Batch, batch_of, encoder, measure, ratio
from deltasam.lab.train.provenance import machine

PLAIN, OURS, OPACUS = "forward and backward", "deltasam", "opacus"


def without_dropout() -> nn.Module:
    """The model; opacus cannot share masks between two calls."""
    model = encoder().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    return model


def plain(batch: Batch) -> Callable[[], None]:
    """A forward and a backward of the mean loss."""
    model, (inputs, labels) = without_dropout(), batch

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(**inputs).logits, labels).backward()

    return step


def ours(batch: Batch) -> Callable[[], Tensor]:
    """The norms by the engine."""
    model, (inputs, labels) = without_dropout(), batch

    def step() -> Tensor:
        return deltasam.per_example_grad_norms(
            model, lambda: F.cross_entropy(model(**inputs).logits, labels, reduction="none")
        )

    return step


def ghost(batch: Batch) -> Callable[[], Tensor]:
    """The norms by opacus."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model, (inputs, labels) = without_dropout(), batch
    watched = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=True)

    def step() -> Tensor:
        model.zero_grad()
        F.cross_entropy(watched(**inputs).logits, labels).backward()
        norms: Tensor = watched.get_norm_sample()
        return norms

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="16x32,8x128", help="examples x tokens, comma-separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="processor: time on all cores together")
    parser.add_argument("--record", type=Path, help="JSON file for every time of every round")
    options = parser.parse_args()
    console, recorded = Console(), {}
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    for shape in options.shapes.split(","):
        torch.manual_seed(0)
        inputs, labels = batch_of(*map(int, shape.split("x")))
        ids = inputs["input_ids"]  # opacus needs the other ids as tensors of their own, too
        positions = torch.arange(ids.shape[1]).repeat(len(ids), 1)
        batch = {**inputs, "position_ids": positions, "token_type_ids": torch.zeros_like(ids)}, labels
        steps = {PLAIN: plain(batch), OURS: ours(batch), OPACUS: ghost(batch)}
        torch.testing.assert_close(steps[OURS](), steps[OPACUS](), rtol=1e-4, atol=0.0)
        seconds = recorded[shape] = measure(steps, options.rounds, shape, CLOCKS[options.clock])
        table = Table("norms of single examples by", title=shape, title_justify="left")
        for column in ("ms", f"x {PLAIN}", f"x {OPACUS}"):
            table.add_column(column, justify="right")
        for name, times in seconds.items():
            ratios = (f"{ratio(seconds, name, base):.2f}" for base in (PLAIN, OPACUS))
            table.add_row(name, f"{1000 * statistics.median(times):.0f}", *ratios)
        console.print(table)
    if options.record:
        setting = {"clock": options.clock, "torch": torch.__version__, "machine": machine()}
        options.record.write_text(json.dumps({**setting, "seconds": recorded}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
