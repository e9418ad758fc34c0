"""Started in two processes: the stacks with several, each process with half of the rows of every step.

The first process prints, as JSON, the error of each stack and method, or what was raised.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import deltasam
import distributed.launch  # noqa: F401 (before there is a group)
from deltasam import reference
from deltasam.core.restore import WeightStore
from matrix import stacks, task

HALVES = replace(stacks.HALVES, side_by_side=True, divided=False)
MEANS = replace(stacks.MEANS, side_by_side=True, divided=False)


def loop(
    spec: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    runtime: deltasam.Runtime | None = None,
    clip: Callable[..., Any] = nn.utils.clip_grad_norm_,
) -> reference.Weights:
    """A plain loop over this process's halves."""
    method = deltasam.make_method(spec, model)
    optimizer = optimizer or task.optimizer_of(model)[0]
    scheduler = task.scheduler_of(optimizer)
    method.follow(optimizer, total_steps=task.STEPS)
    for parts in HALVES.batches:
        batch = parts[dist.get_rank()]
        method.backward(lambda batch=batch: task.losses(model, batch), runtime=runtime)
        clip(model.parameters(), task.MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return task.trained_weights(model)


def ddp(spec: str, folder: Path) -> reference.Weights:
    """``DistributedDataParallel``."""
    return loop(spec, DistributedDataParallel(task.make_model()))


def fsdp(spec: str, folder: Path) -> reference.Weights:
    """``fully_shard`` on every layer and on the whole."""
    model: Any = task.make_model()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    found = loop(spec, fully_shard(model))
    return {name: p.full_tensor() for name, p in found.items()}


def accelerate_fsdp(spec: str, folder: Path) -> reference.Weights:
    """Accelerate shards the model; told to, since by itself it does so on accelerators only."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from deltasam.integrations.accelerate import AccelerateRuntime

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
    )
    try:
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        model = task.make_model()
        optimizer, _ = task.optimizer_of(model)
        model, optimizer = accelerator.prepare(model, optimizer)
        found = loop(spec, model, optimizer, AccelerateRuntime(accelerator), accelerator.clip_grad_norm_)
        return {name: p.full_tensor() for name, p in found.items()}
    finally:
        AcceleratorState._reset_state()


def trainer(spec: str, folder: Path) -> reference.Weights:
    """Hugging Face's trainer, which wraps the model in DDP."""
    from deltasam.integrations.hf import Trainer, TrainingArguments

    options = stacks.trainer_options(folder) | {"per_device_train_batch_size": task.ROWS // 2, "ddp_backend": "gloo"}
    options |= {"average_tokens_across_devices": False}  # this BERT takes a mean, though it could be told more
    trainer = Trainer(task.make_model(), TrainingArguments(method=spec, **options), train_dataset=task.rows())
    trainer.train()
    return task.trained_weights(trainer.model)


STACKS: dict[str, Callable[[str, Path], reference.Weights]] = {
    "DDP": ddp,
    "FSDP2": fsdp,
    "Accelerate, FSDP2": accelerate_fsdp,
    "transformers Trainer, DDP": trainer,
}


def noise(self: WeightStore, params: list[torch.Tensor], generator: Any) -> list[torch.Tensor]:
    """The noise of the loop by hand; of sharded weights, this process's part."""
    whole = [p.detach() for p in task.make_model().parameters()]
    drawn = task.noise(whole)
    if len(params) != len(whole):  # what moves is a part of them, and not sharded
        return task.noise(params)
    if all(p.shape == w.shape for p, w in zip(params, whole, strict=True)):
        return drawn
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    return [distribute_tensor(z, mesh, [torch.distributed.tensor.Shard(0)]).to_local() for z in drawn]


def cell(stack: str, spec: str) -> float | str:
    """How far off the trained weights are in the worst process, or what was raised."""
    try:
        with tempfile.TemporaryDirectory() as folder, task.training_with(spec):
            found = STACKS[stack](spec, Path(folder))
    except (ValueError, RuntimeError, NotImplementedError) as refusal:
        return f"{type(refusal).__name__}: {refusal}"
    assert not any(isinstance(w, DTensor) for w in found.values())
    expected = {name: torch.empty_like(w) for name, w in found.items()}
    if dist.get_rank() == 0:
        expected = {name: task.by_hand(spec, MEANS if "Trainer" in stack else HALVES)[name] for name in found}
    for w in expected.values():
        dist.broadcast(w, 0)
    worst = torch.tensor(task.error(found, expected, task.make_model()))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


def main() -> None:
    """Every cell."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    WeightStore.gaussian = noise  # type: ignore[method-assign]
    cells = {stack: {spec: cell(stack, spec) for spec in task.SPECS} for stack in STACKS}
    if dist.get_rank() == 0:
        print(json.dumps(cells))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
