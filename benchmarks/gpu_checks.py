"""What can be right on a CPU and wrong on an accelerator, each checked on the device against plain PyTorch.

Run by ``benchmarks/gpu.py``. The models are small: it is the kernels, generators and devices that differ.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam.core.closure import losses_of
from deltasam.core.passes import Passes
from deltasam.core.restore import RandomState, accelerators
from deltasam.core.runtime import Runtime
from deltasam.lab.train.random_state import deterministic_algorithms
from deltasam.per_example.engine import Engine
from overhead import Operations
from place import Place, Task

RHO = 0.05
EXACT = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative errors that rounding may leave."""
_WORDS, _EXAMPLES, _TOKENS, _WIDTH = 100, 4, 12, 32

Facts = dict[str, Any]


def bert(dropout: float = 0.0) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A classifier like BERT; its embeddings, biases and normalisations are trained."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": 2, "vocab_size": _WORDS}
    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, num_labels=3, **sizes, **drops)).train()
    ids, labels = torch.randint(5, _WORDS, (_EXAMPLES, _TOKENS)), torch.randint(0, 3, (_EXAMPLES,))
    return model, lambda: F.cross_entropy(model(ids).logits, labels, reduction="none")


def llama(*, lora: bool = False) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A language model like Llama, or adapters in it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": 2, "vocab_size": _WORDS}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=1, **sizes)).train()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train()
    return model, language_losses(model, torch.randint(5, _WORDS, (_EXAMPLES, _TOKENS)))


def language_losses(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """The mean loss of the next token, one per example [n]."""

    def losses() -> Tensor:
        logits = model(ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    return losses


def convolutions(dropout: float = 0.0) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Convolutions that fall under a rule and others, with a normalisation."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.GroupNorm(4, 32), nn.Conv2d(32, 128, 3, stride=4),
        nn.Dropout(dropout), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5),
    ).train()  # fmt: skip
    x, labels = torch.randn(_EXAMPLES, 3, 8, 8), torch.randint(0, 5, (_EXAMPLES,))
    return model, lambda: F.cross_entropy(model(x.to(model[0].weight.dtype)), labels, reduction="none")


def encoder_layers(dropout: float = 0.0) -> tuple[nn.Module, Callable[[], Tensor]]:
    """PyTorch's own Transformer layers."""
    layer = nn.TransformerEncoderLayer(_WIDTH, 2, 2 * _WIDTH, dropout, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(_WIDTH, 3)).train()
    x, labels = torch.randn(_EXAMPLES, _TOKENS, _WIDTH), torch.randint(0, 3, (_EXAMPLES,))
    return model, lambda: F.cross_entropy(model(x.to(model[1].weight.dtype)).mean(1), labels, reduction="none")


TASKS: dict[str, Task] = {
    "bert": bert,
    "bert, dropout": partial(bert, 0.2),
    "llama": llama,
    "llama, LoRA": partial(llama, lora=True),
    "convolutions": convolutions,
    "convolutions, dropout": partial(convolutions, 0.3),
    "transformer layers, dropout": partial(encoder_layers, 0.2),
}


class Case:
    """A small model on the device, and its losses from one random state, whose dropout masks are always the same.

    Args:
        name: One of ``TASKS``.
        place: Where.
        dtype: Of the weights.
    """

    def __init__(self, name: str, place: Place, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.model, self.losses = place.task(TASKS[name])()
        self.model.to(dtype)
        self._start = RandomState(accelerators(self.model.parameters()))
        self.params = [p for p in self.model.parameters() if p.requires_grad]

    def begin(self) -> None:
        """Go back to the random state of the beginning, without gradients."""
        self._start.restore()
        self.model.zero_grad()

    def plain(self) -> list[Tensor]:
        """The gradient of the mean loss, by plain PyTorch."""
        self.begin()
        return list(torch.autograd.grad(self.losses().mean(), self.params))

    def taken(self, spec: str) -> list[Tensor]:
        """The gradient that a method fills in."""
        self.begin()
        method = deltasam.make_method(spec, self.model)
        method.follow(torch.optim.SGD(self.params))  # never steps; some keep an average for it
        method.backward(self.losses)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.params]

    def of_each(self) -> list[list[Tensor]]:
        """Every example's gradient, one ``autograd.grad`` each."""
        self.begin()
        losses = self.losses()
        return [self._gradient(loss) for loss in losses]

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)]

    def per_instance(self, rho: float) -> list[Tensor]:
        """Per-instance SAM by a loop: every example's weights are moved, and one pass is run there."""
        total, before = [torch.zeros_like(p) for p in self.params], [p.detach().clone() for p in self.params]
        of_each = self.of_each()
        for i, ascent in enumerate(of_each):
            with torch.no_grad():
                torch._foreach_add_(self.params, ascent, alpha=rho / float(length(ascent)))
            self.begin()
            torch._foreach_add_(total, self._gradient(self.losses()[i] / len(of_each)))
            with torch.no_grad():
                torch._foreach_copy_(self.params, before)
        return total


def length(vector: list[Tensor]) -> Tensor:
    """Of a vector in weight space []."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.double()) for t in vector]))


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Relative distance."""
    return float(length([a - b for a, b in zip(found, wanted, strict=True)]) / length(wanted))


def exactness(place: Place, dtype: torch.dtype, name: str) -> Facts:
    """The engine beside loops over the examples: each example's gradient, its norm, and the step."""
    case = Case(name, place, dtype)
    wanted = case.of_each()
    case.begin()
    passes = Passes(case.model, case.losses, Runtime(), deltasam.SAM(case.model)._store)
    output, record = (engine := Engine(case.model)).first(passes)
    gradients = engine.gradients(passes, record, losses_of(output), 1)
    norms, of_norms = gradients.norms(), torch.stack([length(w) for w in wanted])
    gradient_errors = []
    for i, gradient in enumerate(wanted):
        alone = gradients.scaled(F.one_hot(torch.tensor(i), len(wanted)).to(norms))
        totals = zip(case.params, alone.totals(case.params), strict=True)
        gradient_errors.append(error([torch.zeros_like(p) if t is None else t for p, t in totals], gradient))
    step = error(case.taken(f"per_instance_sam:rho={RHO}"), case.per_instance(RHO))
    facts = {"gradients": max(gradient_errors), "norms": float((norms / of_norms - 1).abs().max()), "step": step}
    return {"ok": max(facts.values()) < EXACT[dtype], **facts}


def dropout(place: Place) -> Facts:
    """A second pass that hardly moves must have the masks of the first: then its gradient is the plain one."""
    errors = {}
    for name in (n for n in TASKS if "dropout" in n):
        case = Case(name, place)
        for spec in ("sam:rho=1e-9", "per_instance_sam:rho=1e-9"):
            errors[f"{name}: {spec}"] = error(case.taken(spec), case.plain())
    return {"ok": max(errors.values()) < 1e-6, **errors}


def left_as_it_was(place: Place) -> Facts:
    """Weights and the device's random state are afterwards those of one plain forward and backward."""
    case, facts = Case("bert, dropout", place), {}
    before = [p.detach().clone() for p in case.params]
    case.plain()
    after = RandomState(accelerators(case.params))
    for spec in deltasam.method_names():
        case.taken(spec)
        same_weights = all(map(torch.equal, case.params, before))
        drawn = torch.rand(3, device=place.device).tolist()
        after.restore()
        facts[spec] = same_weights and drawn == torch.rand(3, device=place.device).tolist()
    return {"ok": all(facts.values()), **facts}


def default_device(place: Place) -> Facts:
    """A default device that is not the model's changes nothing."""
    facts = {}
    other = place.device if place.kind != "cpu" else "meta"
    here = Place("cpu")
    case = Case("bert, dropout", here)
    for spec in ("sam", "per_instance_sam", "delta_sam:weights=slopes", "delta_sam:weights=norms", "friendly_sam"):
        wanted = case.taken(spec)
        torch.set_default_device(other)
        try:
            facts[spec] = error(case.taken(spec), wanted)
        finally:
            torch.set_default_device(None)
    return {"ok": max(facts.values()) < 1e-9, **facts}


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Products and convolutions of float32 in TF32, where the device has it; or not, as convolutions are by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def lower_precision(place: Place) -> Facts:
    """TF32 and autocast are not refused; given is the error of the gradient, and over its sharpness term alone."""
    facts: Facts = {}
    for name in ("bert", "llama", "convolutions"):
        exact = Case(name, place)
        wanted = exact.taken("per_instance_sam")
        sharpness = length([a - b for a, b in zip(wanted, exact.plain(), strict=True)])
        for how, context in (("tf32", partial(tf32, allowed=True)), ("bf16", Place(place.device, "bf16").autocast)):
            case = Case(name, place, torch.float32)
            with context():
                found = case.taken("per_instance_sam")
            wrong = length([a - b for a, b in zip(found, wanted, strict=True)])
            of_gradient, of_term = float(wrong / length(wanted)), float(wrong / sharpness)
            facts[f"{name}: {how}"] = {"of the gradient": of_gradient, "of the term": of_term}
    return {"ok": all(f["of the gradient"] < 0.1 for f in facts.values()), **facts}


def loss_scale(place: Place) -> Facts:
    """With a GradScaler in float16 the gradient is, unscaled, that of float32."""
    case, facts = Case("bert", place, torch.float32), {}
    for spec in ("sam", "per_instance_sam", "delta_sam:weights=norms"):
        wanted = case.taken(spec)
        scaler = torch.amp.GradScaler(place.kind, init_scale=2.0**12)
        case.begin()

        def scaled(scaler: torch.amp.GradScaler = scaler) -> Tensor:
            with torch.autocast(place.kind, torch.float16):
                losses = case.losses()
            return scaler.scale(losses)

        deltasam.make_method(spec, case.model).backward(scaled)
        optimizer = torch.optim.SGD(case.params, lr=0.0)
        scaler.unscale_(optimizer)
        facts[spec] = error([p.grad for p in case.params], wanted)
    return {"ok": max(facts.values()) < 0.1, **facts}


def checkpointing(place: Place) -> Facts:
    """Gradient checkpointing changes nothing."""
    case, facts = Case("bert, dropout", place), {}
    specs = ("sam", "per_instance_sam", "delta_sam:weights=slopes")
    wanted = {spec: case.taken(spec) for spec in specs}
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    for spec in specs:
        facts[spec] = error(case.taken(spec), wanted[spec])
    return {"ok": max(facts.values()) < 1e-9, **facts}


def again(place: Place) -> Facts:
    """Whether a few steps give the same bits when they are taken again, with what the command line sets for it."""
    facts = {}
    with deterministic_algorithms(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where PyTorch has no such algorithm; whether it matters is what is asked
        for spec in ("sam", "per_instance_sam", "delta_sam:weights=norms"):
            facts[spec] = all(map(torch.equal, _trained(place, spec), _trained(place, spec)))
    return {"ok": all(facts.values()), **facts}


def _trained(place: Place, spec: str) -> list[Tensor]:
    case = Case("bert, dropout", place, torch.float32)
    optimizer, method = torch.optim.AdamW(case.params, lr=1e-3), deltasam.make_method(spec, case.model)
    method.follow(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        method.backward(case.losses)
        optimizer.step()
    return [p.detach() for p in case.params]


def several_devices(place: Place) -> Facts:
    """Layers on two devices, as ``device_map`` puts them."""
    if place.kind == "cpu" or torch.accelerator.device_count() < 2:
        return {"ok": True, "not run": "needs two devices"}
    there = [torch.device(place.kind, i) for i in (0, 1)]
    torch.manual_seed(0)
    first, last = nn.Sequential(nn.Linear(8, 16), nn.Tanh()), nn.Linear(16, 3)
    x, labels = torch.randn(4, 8), torch.randint(0, 3, (4,))
    model = nn.ModuleList([first, last]).double()
    alone = copy.deepcopy(model).to(there[0])
    first.to(there[0])
    last.to(there[1])

    def losses(model: nn.ModuleList) -> Tensor:
        on = [next(part.parameters()).device for part in model]
        logits = model[1](model[0](x.double().to(on[0])).to(on[1]))
        return F.cross_entropy(logits, labels.to(on[1]), reduction="none")

    facts: Facts = {}
    for spec in deltasam.method_names():
        taken = []
        for m in (alone, model):
            m.zero_grad()
            try:
                deltasam.make_method(spec, m).backward(partial(losses, m))
            except Exception as refusal:  # noqa: BLE001 - a refusal is a finding too
                facts[spec] = f"{type(refusal).__name__}: {refusal}"
                break
            taken.append([p.grad.cpu() for p in m.parameters()])
        if len(taken) == 2:
            facts[spec] = error(taken[1], taken[0])
    return {"ok": all(isinstance(f, float) and f < 1e-9 for f in facts.values()), **facts}


def captured_graphs(place: Place) -> Facts:
    """A model under ``torch.compile(mode="reduce-overhead")``, whose outputs a later run writes over."""
    if place.kind != "cuda":
        return {"ok": True, "not run": "CUDA graphs need CUDA"}
    case, facts = Case("bert", place, torch.float32), {}
    wanted = {spec: case.taken(spec) for spec in ("sam", "delta_sam:weights=slopes")}
    case.model.compile(mode="reduce-overhead")
    for spec in wanted:
        for _ in range(3):  # the first runs are not captured
            found = case.taken(spec)
        facts[spec] = error(found, wanted[spec])
    return {"ok": max(facts.values()) < EXACT[torch.float32], **facts}


def waits(place: Place) -> Facts:
    """How often a step that is not checked waits for the device, as the device's library sees it."""
    facts = {}
    for spec in deltasam.method_names():
        case = Case("llama", place, torch.float32)
        method = deltasam.make_method(spec, case.model)
        method.follow(torch.optim.SGD(case.params))
        for _ in range(3):
            case.begin()
            facts[spec] = _waits(place, partial(method.backward, case.losses))
    return {"ok": True, **facts}


def _waits(place: Place, step: Callable[[], object]) -> int:
    if place.kind != "cuda":
        with Operations() as operations:
            step()
        return operations.waits.total()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


CHECKS: dict[str, Callable[[Place], Facts]] = {
    f.__name__.replace("_", " "): f
    for f in (
        dropout, left_as_it_was, default_device, lower_precision, loss_scale, checkpointing, again, several_devices,
        captured_graphs, waits,
    )
}  # fmt: skip
