"""Where the time of a per-instance SAM step goes, beside plain training and beside the fewest operations it can take.

    python benchmarks/breakdown.py                     # MiniLM-L6
    python benchmarks/breakdown.py --model wide --shapes 16x32,8x128
    python benchmarks/breakdown.py --device cuda --precision bf16

A plain forward is one unit of floating-point operations, a full backward two, a backward to the activations only one.
SAM takes six units. Per-instance SAM takes five and what the products of tokens with tokens (or the gradients of single
examples, where these are cheaper) add. All phases take turns within every round; printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cost import MODELS, batch_of, classification
from deltasam import PerInstanceSAM
from deltasam.core.closure import loss_of, losses_of
from deltasam.core.passes import Passes
from deltasam.core.restore import WeightStore
from deltasam.core.runtime import Runtime
from deltasam.per_example.engine import Engine
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.perturbed_forward import Perturbed
from place import add_options, place_of


class Phases:
    """Times of consecutive phases, in ms: one list per phase.

    Args:
        clock: In seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.times: dict[str, list[float]] = {}
        self._clock = clock
        self._last = clock()

    def start(self) -> None:
        """From here."""
        self._last = self._clock()

    def end(self, name: str) -> None:
        """Till here; the next phase starts."""
        now = self._clock()
        self.times.setdefault(name, []).append(1000 * (now - self._last))
        self._last = self._clock()


def plain(model: nn.Module, losses: Callable[[], Tensor], phases: Phases) -> None:
    model.zero_grad()
    phases.start()
    loss = losses().mean()
    phases.end("plain forward")
    loss.backward()
    phases.end("plain backward")


def per_instance(
    model: nn.Module, losses: Callable[[], Tensor], engine: Engine, store: WeightStore, phases: Phases
) -> None:
    """The phases of PerInstanceSAM.fill, one by one."""
    model.zero_grad()
    phases.start()
    passes = Passes(model, losses, Runtime(), store)
    output, record = engine.first(passes)
    loss = losses_of(output)
    phases.end("first forward")
    by_output = passes.grad(loss.sum(), record.outputs)
    phases.end("backward to outputs")
    gradients = ExampleGradients(record.uses, by_output, len(loss))
    norms = gradients.norms()
    phases.end("norms")
    gradients.scale(0.005 / norms)
    with Perturbed(record, gradients), passes.at() as point:
        phases.end("second forward")
        passes.backward(loss_of(point.output))
        phases.end("second backward")


def operations(step: Callable[[], object]) -> float:
    """Floating-point operations of a step, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument("--shapes", default="32x16,16x32,16x64,8x128,2x512", help="examples x tokens, comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    add_options(parser)
    options = parser.parse_args()
    place, console = place_of(options), Console()
    console.print(f"{place}, medians of {options.rounds} rounds")
    for shape in options.shapes.split(","):
        examples, tokens = map(int, shape.split("x"))
        with place.tensors():
            batch = batch_of(examples, tokens)
        model, losses = place.task(classification(MODELS[options.model], batch))()
        method = PerInstanceSAM(model)
        method.backward(losses)  # checked
        phases = Phases(place.clock())
        for _ in range(options.rounds):
            plain(model, losses, phases)
            per_instance(model, losses, method._engine, method._store, phases)
        unit = operations(losses)
        flops = operations(partial(method.backward, losses))
        table = Table("phase", "ms", title=f"{examples} examples x {tokens} tokens", title_justify="left")
        for name, times in phases.times.items():
            table.add_row(name, f"{statistics.median(times):.0f}")
        console.print(table)
        console.print(f"operations: {flops / unit:.2f} forwards; SAM takes 6, the floor is 5")


if __name__ == "__main__":
    main()
