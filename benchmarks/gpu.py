"""All that a GPU is needed for, in ten minutes on one card: what is right there, how long a step takes, what it needs.

    python benchmarks/gpu.py --record gpu.json
    python benchmarks/gpu.py --minutes 5 --only exactness,checks
    python benchmarks/gpu.py --device cpu --tiny         # that the script itself works

exactness    per-example gradients, their norms and the step of per-instance SAM beside loops over the examples
checks       what differs on an accelerator: random states, TF32, loss scales, graphs, ... (gpu_checks.py)
overhead     a step of deep, narrow models beside its arithmetic (overhead.py), under bf16 autocast
steps        whole training steps of BERT-base, 32 x 128, and of a Llama of 0.5B, 4 x 512, with and without LoRA,
             under bf16 autocast (cost.py): time, peak memory, waits, and the first step over a later one

The record is written after every part, so that what was measured is kept whatever happens later. What fails is in the
record with its error, and what the time was not enough for with a note; either way the other parts go on.
The exit status is 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import deltasam
import overhead
from cost import PEER, batch_of, classification, measure, method_step, peer_step, ratio
from deltasam.core.files import write_atomically
from gpu_checks import CHECKS, EXACT, TASKS, Facts, exactness, language_losses, tf32
from overhead import counted, first_over_later
from place import Place, Task, add_options

METHODS = ("erm", "sam", "asam", "per_instance_sam", "delta_sam:weights=norms", "delta_sam:weights=slopes")


@dataclass(frozen=True)
class Sizes:
    """How large everything is: of a real run, or of a try on a CPU."""

    bert: dict[str, int]
    bert_batch: tuple[int, int]
    llama: dict[str, Any]
    llama_batch: tuple[int, int]
    deep: tuple[str, ...]
    rounds: int


_HEADS = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
REAL = Sizes(
    bert={},  # as BertConfig is by default: BERT-base
    bert_batch=(32, 128),
    llama={
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 20, "num_attention_heads": 20,
        "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True,
    },
    llama_batch=(4, 512),
    deep=("bert-12", "llama-12"),
    rounds=9,
)  # fmt: skip
TINY = Sizes(
    bert={"num_hidden_layers": 1, **_HEADS},
    bert_batch=(2, 8),
    llama={"num_hidden_layers": 1, "num_key_value_heads": 1, "vocab_size": 50, **_HEADS},
    llama_batch=(2, 8),
    deep=("bert-1", "llama-1"),
    rounds=1,
)


def base(sizes: Sizes) -> Task:
    """A classifier of BERT-base's size, random weights, dropout on."""
    from transformers import BertConfig, BertForSequenceClassification

    def task() -> tuple[nn.Module, Callable[[], Tensor]]:
        torch.manual_seed(0)
        make = partial(BertForSequenceClassification, BertConfig(num_labels=3, **sizes.bert))
        return classification(make, batch_of(*sizes.bert_batch))()

    return task


def language_model(sizes: Sizes, *, lora: bool) -> Task:
    """A language model like Llama, random weights, or adapters of rank 16 on all its layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def task() -> tuple[nn.Module, Callable[[], Tensor]]:
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes.llama)).train()
        if lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear")).train()
        return model, language_losses(model, torch.randint(5, sizes.llama["vocab_size"], sizes.llama_batch))

    return task


def once(task: Task) -> Task:
    """The same model and losses for whoever asks: there may be no room for one each."""
    made = task()
    return lambda: made


def peak_mib(spec: str, task: Task, place: Place) -> float | None:
    """The most memory that is allocated in a later step; None where PyTorch does not count it."""
    if place.kind != "cuda":
        return None
    step = peer_step(task) if spec == PEER else method_step(spec, task)
    for _ in range(2):
        step()
    torch.cuda.reset_peak_memory_stats(place.device)
    step()
    peak = torch.cuda.max_memory_allocated(place.device) / 2**20
    task()[0].zero_grad()
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return peak


def timed(task: Task, place: Place, rounds: int, *, memory: bool) -> Facts:
    """What a step of every method costs: its times, and what is counted."""
    clock = place.clock()
    peaks = {spec: peak_mib(spec, task, place) for spec in (*METHODS, PEER)} if memory else {}
    operations = {spec: counted(spec, task) for spec in METHODS}
    checked = {spec: first_over_later(spec, task, clock, rounds) for spec in METHODS}
    steps = {spec: method_step(spec, task) for spec in METHODS} | {PEER: peer_step(task)}
    seconds = measure(steps, rounds, "steps", clock)
    plain = operations["erm"].all.total()
    return {
        name: {
            "ms": 1000 * statistics.median(times),
            "x erm": ratio(seconds, name, "erm"),
            f"x {PEER}": ratio(seconds, name, PEER),
            **({"peak MiB": peaks[name]} if memory else {}),
            **(
                {
                    "first / later": checked[name],
                    "operations x erm": operations[name].all.total() / plain,
                    "waits": operations[name].waits.total(),
                }
                if name in operations
                else {}
            ),
            "seconds": times,
        }
        for name, times in seconds.items()
    }


def parts(place: Place, sizes: Sizes) -> Iterator[tuple[str, str, Callable[[], Facts]]]:
    """Everything that is run: its section, its name, and what to call."""
    for dtype in EXACT:
        for name in TASKS:
            yield "exactness", f"{name}, {str(dtype).removeprefix('torch.')}", partial(_exact, place, dtype, name)
    for name, check in CHECKS.items():
        yield "checks", name, partial(check, place)
    lower = Place(place.device, "bf16")
    for name in sizes.deep:
        kind, layers = name.split("-")
        task = getattr(overhead, kind)(int(layers))
        yield "overhead", name, lambda task=task: timed(lower.task(task), lower, 2 * sizes.rounds + 1, memory=False)
    tasks = {
        f"BERT-base, {_shape(sizes.bert_batch)}": base(sizes),
        f"Llama 0.5B, {_shape(sizes.llama_batch)}": language_model(sizes, lora=False),
        f"Llama 0.5B with LoRA-16, {_shape(sizes.llama_batch)}": language_model(sizes, lora=True),
    }
    for name, task in tasks.items():
        yield "steps", name, lambda task=task: timed(once(lower.task(task)), lower, sizes.rounds, memory=True)


def _exact(place: Place, dtype: torch.dtype, name: str) -> Facts:
    with tf32(allowed=False):
        return exactness(place, dtype, name)


def _shape(batch: tuple[int, int]) -> str:
    return f"{batch[0]} x {batch[1]}"


def outcome(part: Callable[[], Facts]) -> Facts:
    """What a part found, or the error that it ended in."""
    try:
        return part()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are worth their time
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def told(facts: Facts) -> str:
    """A part in a line or a few."""
    if "error" in facts:
        return f"FAILED: {facts['error'][:300]}"
    rows = {name: fact for name, fact in facts.items() if isinstance(fact, dict) and "ms" in fact}
    if not rows:
        rest = ", ".join(f"{name} {_number(fact)}" for name, fact in facts.items() if name != "ok")
        return f"{'ok' if facts['ok'] else 'WRONG'}: {rest}"
    return "".join(
        f"\n  {name:26s}" + "  ".join(f"{key} {_number(value)}" for key, value in row.items() if key != "seconds")
        for name, row in rows.items()
    )


def _number(fact: Any) -> str:
    if isinstance(fact, dict):
        return " / ".join(f"{_number(value)} {name}" for name, value in fact.items())
    return f"{fact:.3g}" if isinstance(fact, float) else str(fact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=Path("gpu.json"), help="JSON file for all of it")
    parser.add_argument("--minutes", type=float, default=10, help="after which no other part is begun")
    parser.add_argument("--only", help="sections, comma-separated: exactness, checks, overhead, steps")
    parser.add_argument("--tiny", action="store_true", help="everything at a size that means nothing")
    add_options(parser, device="auto", precision=False)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    place, console = Place(options.device), Console()
    started, sizes = time.monotonic(), TINY if options.tiny else REAL
    sections: dict[str, dict[str, Facts]] = {}
    record: dict[str, Any] = {
        "deltasam": deltasam.__version__,
        "tiny": options.tiny,
        **place.conditions(),
        "sections": sections,
    }
    console.print(str(place))
    for section, name, part in parts(place, sizes):
        if options.only and section not in options.only.split(","):
            continue
        if time.monotonic() - started > 60 * options.minutes:
            facts: Facts = {"ok": True, "not run": f"{options.minutes:g} minutes were over"}
        else:
            facts = outcome(part)
        sections.setdefault(section, {})[name] = facts
        record["seconds"] = time.monotonic() - started
        write_atomically(options.record, json.dumps(record, indent=1) + "\n")
        console.print(
            f"[{record['seconds']:.0f} s] {section}: {name}: {told(facts)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    wrong = [
        f"{section}: {name}" for section in sections for name, f in sections[section].items() if not f.get("ok", True)
    ]
    console.print(
        f"written to {options.record}; "
        + (f"not as it should be: {'; '.join(wrong)}" if wrong else "all as it should be")
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
