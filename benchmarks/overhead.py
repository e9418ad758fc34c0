"""What a step costs beside its arithmetic: every method on deep, narrow models, in which arithmetic is next to nothing.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py
    python benchmarks/overhead.py --models bert-12,bert-96 --methods sam,per_instance_sam
    python benchmarks/overhead.py --record benchmarks/results/overhead.json    # every time, for docs/benchmarks.md
    python benchmarks/overhead.py --device cuda --precision bf16

An accelerator waits for the operations that Python launches, where a model is small or the accelerator fast; these
models show that time on a CPU. Beside the times of ``cost.py``: the operations dispatched in a step over those of plain
training; how often a step asks the device for a number, for which it must wait for all that was launched; and a first
step, which is checked, over later ones. With depths of one architecture among the models, the growth of time with depth
over that of the peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import deltasam
from cost import PEER, measure, method_step, peer_step, ratio
from place import CLOCKS, Task, add_options, place_of

WIDTH, EXAMPLES, TOKENS, WORDS = 32, 4, 8, 100
WRITTEN, COMPILED = "as written", "compiled"
FIRST_STEPS = 5
_WAITS = frozenset(["_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "bincount"])


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched inside, and those among them that make the device wait."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.all[name] += 1
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in _WAITS or by_mask or (name == "repeat_interleave" and isinstance(args[-1], Tensor)):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def bert(layers: int, *, dropout: float = 0.0, lora: bool = False) -> Task:
    """A classifier like BERT."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2, "vocab_size": WORDS}
    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)

    def task() -> tuple[nn.Module, Callable[[], Tensor]]:
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=3, **sizes, **drops))
        model = _with_adapters(model, ["query", "value"]) if lora else model.train()
        ids, labels = torch.randint(5, WORDS, (EXAMPLES, TOKENS)), torch.randint(0, 3, (EXAMPLES,))
        mask = torch.ones_like(ids)
        return model, lambda: F.cross_entropy(model(ids, attention_mask=mask).logits, labels, reduction="none")

    return task


def llama(layers: int, *, lora: bool = False) -> Task:
    """A language model like Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2, "vocab_size": WORDS}

    def task() -> tuple[nn.Module, Callable[[], Tensor]]:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, num_key_value_heads=1, **sizes))
        model = _with_adapters(model, ["q_proj", "v_proj"]) if lora else model.train()
        ids = torch.randint(5, WORDS, (EXAMPLES, TOKENS))

        def losses() -> Tensor:
            logits = model(ids, use_cache=False).logits[:, :-1]
            return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

        return model, losses

    return task


def _with_adapters(model: nn.Module, modules: list[str]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=modules, lora_dropout=0.0)).train()


MODELS: dict[str, Task] = {
    "bert-12": bert(12),
    "bert-96": bert(96),
    "bert-12-dropout": bert(12, dropout=0.1),
    "bert-12-lora": bert(12, lora=True),
    "llama-12": llama(12),
    "llama-96": llama(96),
    "llama-12-lora": llama(12, lora=True),
}


def counted(spec: str, task: Task) -> Operations:
    """The operations of a step that is not checked."""
    step = method_step(spec, task)
    for _ in range(2):  # counting makes another graph, whose first step is checked
        with Operations() as operations:
            step()
    return operations


def first_over_later(spec: str, task: Task, clock: Callable[[], float], rounds: int = FIRST_STEPS) -> float:
    """A method's first step over its third, both without the optimizer's; the median of a few."""
    model, losses = task()
    ratios = []
    for _ in range(rounds + 1):
        method, times = deltasam.make_method(spec, model), []
        method.follow(torch.optim.SGD(model.parameters()))
        for _ in range(3):
            start = clock()
            method.backward(losses)
            times.append(clock() - start)
        ratios.append(times[0] / times[2])
    return statistics.median(ratios[1:])


def compiled(task: Task) -> Task:
    """The same with ``torch.compile``."""

    def made() -> tuple[nn.Module, Callable[[], Tensor]]:
        model, losses = task()
        model.compile()
        return model, losses

    return made


def growth(seconds: dict[str, dict[str, list[float]]], name: str) -> dict[str, float]:
    """By how much more a method's time grows from the shallowest model of a kind to the deepest than the peer's."""
    depths: dict[str, list[tuple[int, str]]] = {}
    for model in seconds:
        kind, layers, *others = model.split("-")
        depths.setdefault("-".join([kind, *others]), []).append((int(layers), model))
    found = {}
    for kind, models in depths.items():
        (_, shallow), (_, deep) = min(models), max(models)
        if shallow != deep:
            found[kind] = ratio(seconds[deep], name, PEER) / ratio(seconds[shallow], name, PEER)
    return found


def table_of(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """A row for each method."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for column in next(iter(rows.values())):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.2f}" if value % 1 else f"{value:.0f}" for value in row.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="bert-12,llama-12", help=f"comma-separated: {', '.join(MODELS)}")
    parser.add_argument("--methods", default=",".join(deltasam.method_names()), help="specs, comma-separated")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="processor: time on all cores together")
    parser.add_argument("--compile", action="store_true", help="also with the model compiled, beside as it was written")
    parser.add_argument("--record", type=Path, help="JSON file for every time of every round")
    add_options(parser)
    options = parser.parse_args()
    place = place_of(options)
    specs = ["erm", *(s for s in deltasam.split_specs(options.methods) if s != "erm")]
    clock, console = place.clock(options.clock), Console()
    console.print(f"{place}, medians of {options.rounds} rounds")
    seconds: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, dict[str, dict[str, float]]] = {}
    together: dict[str, dict[str, dict[str, list[float]]]] = {}
    for model in options.models.split(","):
        task = place.task(MODELS[model])
        operations = {spec: counted(spec, task) for spec in specs}
        plain = operations["erm"].all.total()
        steps = {spec: method_step(spec, task) for spec in specs} | {PEER: peer_step(task)}
        seconds[model] = measure(steps, options.rounds, model, clock)
        counts[model] = {
            spec: {
                "operations x erm": found.all.total() / plain,
                "waits": float(found.waits.total()),
                "first / later": first_over_later(spec, task, clock),
            }
            for spec, found in operations.items()
        }
        rows = {
            spec: {
                "ms per step": 1000 * statistics.median(seconds[model][spec]),
                "x erm": ratio(seconds[model], spec, "erm"),
                f"x {PEER}": ratio(seconds[model], spec, PEER),
                **counts[model][spec],
            }
            for spec in specs
        }
        console.print(table_of(model, rows))
        if options.compile:
            together[model] = {
                spec: measure(
                    {WRITTEN: method_step(spec, task), COMPILED: method_step(spec, compiled(task))},
                    options.rounds,
                    f"{model}, {spec}",
                    clock,
                )
                for spec in specs
            }
            rows = {spec: {COMPILED: ratio(found, COMPILED, WRITTEN)} for spec, found in together[model].items()}
            console.print(table_of(f"{model}: time with torch.compile over that without", rows))
    growths = {spec: found for spec in specs if (found := growth(seconds, spec))}
    if growths:
        console.print(table_of("growth of time with depth over the peer's", growths))
    if options.record:
        measured = {"seconds": seconds, "counts": counts, "compiled": together}
        record = {"clock": options.clock, **place.conditions(), **measured}
        options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
