"""Peak memory of a training step: per-instance SAM beside another library's SAM and plain training.

    python benchmarks/memory.py                      # MiniLM-L6, 16 examples x 64 tokens
    python benchmarks/memory.py --shapes 16x64,8x128
    python benchmarks/memory.py --device cuda --precision bf16

    python benchmarks/memory.py --plan llama-7b --batch 4x2048 --lora 16          # without the memory (memory_plan.py)
    python benchmarks/memory.py --plan path/to/config.json --batch 16x512 --weights fp32 --precision bf16

Every contestant runs in a process of its own; its peak is the largest resident set while it trains, less what the
process took once torch and transformers were loaded; on CUDA the most that PyTorch had allocated. Printed are medians
over a few processes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

import deltasam
from cost import MODELS, PEER, batch_of, classification, method_step, peer_step
from memory_plan import CONFIGS, WEIGHTS, Setting, config_of, report
from place import Place, add_options, place_of

_STEPS = 4


def peak_of(name: str, model: str, shape: str, place: Place) -> float:
    """Peak memory of a few steps in this process, in MiB."""
    import transformers

    assert transformers.BertForSequenceClassification  # loaded before the measurement starts
    before = place.peak_memory()
    examples, tokens = map(int, shape.split("x"))
    with place.tensors():
        batch = batch_of(examples, tokens)
    task = place.task(classification(MODELS[model], batch))
    step = peer_step(task) if name == PEER else method_step(name, task)
    for _ in range(_STEPS):
        step()
    return place.peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument("--shapes", default="16x64", help="examples x tokens, comma-separated")
    parser.add_argument("--methods", default="erm,sam,per_instance_sam", help="specs, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    plan = parser.add_argument_group("what a model that does not fit here needs")
    plan.add_argument("--plan", metavar="MODEL_CONFIG", help=f"a config.json, its folder, or {', '.join(CONFIGS)}")
    plan.add_argument("--batch", default="4x2048", help="examples x tokens")
    plan.add_argument("--lora", type=int, default=0, metavar="RANK", help="adapters on every linear layer")
    plan.add_argument("--weights", choices=WEIGHTS, default="bf16", help="the type of the weights")
    plan.add_argument("--checkpointing", action="store_true", help="run layers again in the backward")
    plan.add_argument("--room", type=float, default=80, metavar="GIB", help="for which the largest batch is sought")
    add_options(parser)
    options = parser.parse_args()
    place = place_of(options)
    if options.plan:
        examples, tokens = map(int, options.batch.split("x"))
        rest = (options.lora, WEIGHTS[options.weights], options.precision, options.checkpointing)
        setting = Setting(config_of(options.plan), examples, tokens, *rest)
        report(Console(), options.plan, setting, options.room)
        return
    if options.one:
        print(peak_of(options.one, options.model, options.shapes, place))
        return
    for shape in options.shapes.split(","):
        peaks: dict[str, float] = {}
        for name in (PEER, *deltasam.split_specs(options.methods)):
            command = [sys.executable, __file__, "--one", name, "--model", options.model, "--shapes", shape]
            command += ["--device", place.device, "--precision", place.precision]
            runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(options.rounds)]
            peaks[name] = statistics.median(float(run.stdout.split()[-1]) for run in runs)
        table = Table("method", "peak MiB", f"x {PEER}", title=shape.replace("x", " examples x ") + " tokens")
        for name, peak in peaks.items():
            table.add_row(name, f"{peak:.0f}", f"{peak / peaks[PEER]:.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()
