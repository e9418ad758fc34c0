"""What every stack trains, and the loop, written by hand from the equations, that it must equal.

A tiny BERT classifies eight rows a step, for four steps: stochastic gradient descent with momentum, clipping, and a
learning rate that falls linearly. SGD, since Adam blows the rounding of a zero gradient up to a whole step; methods
that need a second moment have Adam, with a constant under the fraction that is large enough for it not to.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import deltasam
import tiny_trainers as tiny
from deltasam import reference
from deltasam.core.restore import WeightStore

STEPS, ROWS, LENGTH, LR, MOMENTUM, MAX_NORM = 4, 8, 6, 0.3, 0.9, 1.0
ADAM_LR, ADAM_EPS = 0.02, 0.01
RHO = 0.2
Batch = dict[str, Tensor]


def _columns() -> list[str]:
    """Every method with a radius; sharing; a schedule.

    Those that weight examples with each kind of weights that can be had everywhere. RW-SAM's from slopes are more
    sensitive than delta-SAM's: in pure bfloat16 they are noise, and it warns.
    """
    with_rho = [name for name in deltasam.method_names() if "rho" in deltasam.Method.registry[name].neutral]
    specs = [f"{name}:rho={RHO}" for name in with_rho if name not in ("delta_sam", "rw_sam")]
    weighted = [("delta_sam", "own_curvature"), ("delta_sam", "norms"), ("delta_sam", "slopes"), ("rw_sam", "norms")]
    ways = [f"{name}:rho={RHO},weights={weights}" for name, weights in weighted]
    specs = [f"{spec},k=2" if spec.startswith("looksam") else spec for spec in specs]
    return ["erm", *specs, *ways, f"sam:rho={RHO},share=global", f"sam:rho={RHO}@every=2", f"sam:rho={RHO},only=norm"]


SPECS = _columns()


def make_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same one each time."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config).to(dtype)


def rows() -> list[Batch]:
    """The training data, one row after the other."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(STEPS * ROWS):
        ids = torch.randint(1, 20, (LENGTH,), generator=generator)
        mask = (torch.arange(LENGTH) < LENGTH - i % 3).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(i % 3)})
    return made


def stacked(some: Sequence[Batch]) -> Batch:
    """Rows as a batch."""
    return {name: torch.stack([row[name] for row in some]) for name in some[0]}


def batches(micro: int = 1) -> list[list[Batch]]:
    """The micro-batches of each step."""
    size = ROWS // micro
    parts = [stacked(rows()[start : start + size]) for start in range(0, STEPS * ROWS, size)]
    return [parts[step * micro : (step + 1) * micro] for step in range(STEPS)]


def losses(call: Callable[..., Any], batch: Batch) -> Tensor:
    """One loss per row [n]."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return F.cross_entropy(call(**inputs).logits, batch["labels"], reduction="none")


@dataclass(frozen=True, eq=False)
class Task:
    """A model, its batches and its loss per example. Stacks that share one share its loops by hand.

    Attributes:
        model: Makes the model.
        losses: One per example, with something to call in place of the model.
        batches: The micro-batches of each step.
        side_by_side: They are processes', not one after the other.
        divided: The loss of a micro-batch, whose gradient a method takes first, is divided by their number already.
        by_slopes: delta-SAM has its curvature from slopes: a method sees the mean loss only, or in half precision.
    """

    model: Callable[[], nn.Module] = make_model
    losses: Callable[[Callable[..., Any], Any], Tensor] = losses
    batches: Sequence[Sequence[Any]] = ()
    side_by_side: bool = False
    by_slopes: bool = False
    divided: bool = True


_trained_with: list[str] = []


@contextlib.contextmanager
def training_with(spec: str) -> Iterator[None]:
    """Inside, the optimizer is one that has what the method needs."""
    _trained_with.append(spec)
    try:
        yield
    finally:
        _trained_with.pop()


def adaptive() -> bool:
    """Whether the method that trains at present needs an optimizer's second moment."""
    return _trained_with[-1].startswith("preconditioned")


def optimizer_of(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and its schedule."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if adaptive():
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=ADAM_LR, eps=ADAM_EPS, weight_decay=0.0)
    else:
        optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
    return optimizer, scheduler_of(optimizer)


def scheduler_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning rate that falls to 0."""
    return torch.optim.lr_scheduler.LambdaLR(getattr(optimizer, "optimizer", optimizer), lambda step: 1 - step / STEPS)


@cache
def by_hand(spec: str, task: Task) -> reference.Weights:
    """The trained weights after all steps, each gradient straight from its equation."""
    model = task.model()
    with training_with(spec):
        optimizer, scheduler = optimizer_of(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    method = spec.partition(":")[0]
    state: dict[str, Any] = {}
    for step, micro_batches in enumerate(task.batches or batches()):
        if (
            key := {"momentum_sam": "momentum_buffer"}.get(method, "exp_avg_sq" if "precond" in method else "")
        ) and step:
            state = {n: optimizer.state[p][key] for n, p in trained.items()}
        if method == "s2_sam" and step:
            state = {n: p.grad for n, p in trained.items() if p.grad is not None}
        gradient = gradient_by_hand(spec, step, model, task, micro_batches, state)
        for name, p in trained.items():
            p.grad = gradient[name].to(p.dtype)
        nn.utils.clip_grad_norm_(trained.values(), MAX_NORM)
        optimizer.step()
        scheduler.step()
    return {n: p.detach() for n, p in trained.items()}


def gradient_by_hand(
    spec: str, step: int, model: nn.Module, task: Task, micro_batches: Sequence[Any], state: dict[str, Any]
) -> reference.Weights:
    """The gradient of one step; micro-batches that are apart all draw the same noise."""
    count = len(micro_batches)
    share = count if task.divided else 1
    runs = [lambda call, b=b: task.losses(call, b) / share for b in micro_batches]
    if spec.startswith("flat_lora") and any(hasattr(m, "lora_A") for m in model.modules()):
        return adapted_by_hand(model, runs)
    vectors = spec.startswith("flat_lora")  # do not move
    drawn = noise(p for p in model.parameters() if p.requires_grad and (p.ndim > 1 or not vectors))
    total = tiny.step_gradient(
        model, spec, runs, step, [drawn] * count, state, side_by_side=task.side_by_side, by_slopes=task.by_slopes
    )
    return {name: g * share / count for name, g in total.items()}


def adapted_by_hand(model: nn.Module, runs: Any) -> reference.Weights:
    """Flat-LoRA's gradient: the frozen weights of adapted layers have the noise."""
    moved: Any = copy.deepcopy(model)
    layers = [m for m in moved.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    with torch.no_grad():
        for layer, z in zip(layers, noise(layer.base_layer.weight for layer in layers), strict=True):
            adapter = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            merged = layer.base_layer.weight + layer.scaling["default"] * adapter
            layer.base_layer.weight.add_(RHO * merged.square().mean(1, keepdim=True).sqrt() * z)
    moved.zero_grad()
    for run in runs:
        run(moved).mean().backward()
    return {n: p.grad for n, p in moved.named_parameters() if p.requires_grad}


def noise(params: Any) -> list[Tensor]:
    """Standard normal noise, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in params]


@contextlib.contextmanager
def fixed_noise() -> Iterator[None]:
    """Methods draw the noise that the loop by hand has."""
    drawn, WeightStore.gaussian = WeightStore.gaussian, lambda self, params, generator: noise(params)  # type: ignore[method-assign]
    try:
        yield
    finally:
        WeightStore.gaussian = drawn  # type: ignore[method-assign]


def error(found: reference.Weights, expected: reference.Weights, start: nn.Module) -> float:
    """How far the found weights are from the expected ones, relative to how far training moved them."""
    before = dict(start.named_parameters())
    pairs = [(found[n].double(), w.double(), before[n].detach().double()) for n, w in expected.items()]
    off = torch.stack([(f - w).norm() for f, w, _ in pairs]).norm()
    return float(off / torch.stack([(w - b).norm() for _, w, b in pairs]).norm())


def trained_weights(model: nn.Module) -> reference.Weights:
    """What ``by_hand`` returns, of a model that a stack has trained."""
    return {n.removeprefix("module."): p.detach() for n, p in model.named_parameters() if p.requires_grad}
