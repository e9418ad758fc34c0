"""Tiny models and data for the trainers, and the loop by hand that a trainer must agree with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

import deltasam
from deltasam import reference
from deltasam.scheduled import Scheduled

EXAMPLES, TOKENS, WORDS, LABELS = 4, 7, 30, 3
# Every method, radii at which perturbing matters; and who shares a perturbation, a schedule, the other weights.
SPECS = [
    "erm",
    "sam:rho=0.1",
    "asam:rho=0.5",
    "per_instance_sam:rho=0.1",
    "per_instance_sam:rho=0.1,m=2",
    "delta_sam:rho=0.1",
    "delta_sam:rho=0.1,weights=slopes",
    "friendly_sam:rho=0.1",
    "rw_sam:rho=0.1,weights=norms",
    "sam:rho=0.1,share=rank",
    "sam:rho=0.1,share=global",
    "sam:rho=0.1@every=2",
]


class Classifier(BertForSequenceClassification):
    """A BERT whose loss is a sum over the examples, divided by the number of them in the whole optimizer step."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        logits = super().forward(input_ids=input_ids, attention_mask=attention_mask).logits
        items = len(labels) if num_items_in_batch is None else num_items_in_batch
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels, reduction="sum") / items, logits=logits)


def bert_config(**options: Any) -> BertConfig:
    """One narrow layer, no dropout unless asked for."""
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": LABELS}
    return BertConfig(**{**sizes, **plain, "intermediate_size": 32, "max_position_embeddings": 16, **options})


def model(kind: type[nn.Module] = Classifier, **options: Any) -> Any:
    """The same weights every time, in double precision."""
    torch.manual_seed(0)
    return kind(bert_config(**options)).double()


def new_model() -> Any:
    """For a trainer that wants to make its model itself."""
    return model()


def rows(count: int = 12, seed: int = 1) -> list[dict[str, Tensor]]:
    """Random texts and labels; the last tokens of some are padding."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, TOKENS + 1, (count,), generator=g)
    return [
        {
            "input_ids": torch.randint(0, WORDS, (TOKENS,), generator=g),
            "attention_mask": (torch.arange(TOKENS) < n).long(),
            "labels": torch.randint(0, LABELS, (), generator=g),
        }
        for n in lengths
    ]


def collate(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch."""
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}


def settings(folder: Any, method: str, **options: Any) -> dict[str, Any]:
    """Arguments for four steps of SGD over the rows in their order."""
    plain = {
        "output_dir": str(folder), "method": method, "max_steps": 4, "learning_rate": 0.1, "optim": "sgd",
        "max_grad_norm": 0.5, "use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
        "disable_tqdm": True, "train_sampling_strategy": "sequential", "per_device_train_batch_size": EXAMPLES,
    }  # fmt: skip
    return for_this_version({**plain, **options})


def for_this_version(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that this version of transformers has: before 5.0 no argument makes a trainer keep the rows' order."""
    if "train_sampling_strategy" in inspect.signature(transformers.TrainingArguments).parameters:
        return arguments
    arguments = dict(arguments)
    if arguments.pop("train_sampling_strategy") == "sequential":
        _IN_ORDER.add(arguments["output_dir"])
        transformers.Trainer._get_train_sampler = _sampler
    return arguments


_IN_ORDER: set[str] = set()
_random_sampler = getattr(transformers.Trainer, "_get_train_sampler", None)


def _sampler(trainer: Any, rows: Any = None) -> Any:
    rows = trainer.train_dataset if rows is None else rows
    return SequentialSampler(rows) if trainer.args.output_dir in _IN_ORDER else _random_sampler(trainer, rows)


def weights_of(trained: nn.Module) -> Tensor:
    """All of them [p]."""
    return torch.cat([p.detach().flatten() for p in trained.parameters()])


def assert_close(actual: nn.Module, expected: nn.Module, tolerance: float) -> None:
    """Relative to how long the weights are."""
    a, b = weights_of(actual), weights_of(expected)
    error = float((a - b).norm() / b.norm())
    assert error <= tolerance, f"{error:.1e} is more than {tolerance:.0e}"


def by_hand(
    trained: nn.Module,
    spec: str,
    steps: Sequence[Sequence[Callable[[Callable[..., Any]], Tensor]]],
    *,
    lr: float = 0.1,
    max_norm: float = 0.5,
    noise: Sequence[list[Tensor]] = (),
) -> nn.Module:
    """Clipped gradient descent with a linear schedule on a copy of a model; the gradients are the reference's.

    Args:
        trained: Where it starts.
        spec: The method.
        steps: The micro-batches of each step.
        lr: Of the first step.
        max_norm: Gradients are clipped to it.
        noise: What delta-SAM drew for each micro-batch.
    """
    trained, noise, state = copy.deepcopy(trained).train(), list(noise), {}
    for number, runs in enumerate(steps):
        gradient = step_gradient(trained, spec, runs, number, noise, state, by_slopes=True)  # trainers give the mean
        scale = min(1.0, max_norm / (float(reference.norm(gradient)) + 1e-6))
        with torch.no_grad():
            for name, p in trained.named_parameters():
                if p.requires_grad:
                    p.sub_(lr * (1 - number / len(steps)) * scale * gradient[name])
    return trained


def step_gradient(
    trained: nn.Module,
    spec: str,
    runs: Any,
    number: int,
    noise: list[list[Tensor]],
    state: dict[str, Tensor],
    *,
    side_by_side: bool = False,
    by_slopes: bool = False,
) -> Any:
    """The gradient of one optimizer step; ``state`` is what a method keeps from one to the next, at first empty.

    Parts that are side by side, in processes, all begin with it, and it becomes the mean of what they would keep. With
    a scalar loss, and in half precision, delta-SAM has its curvature from slopes.
    """
    parts = [reference.losses_function(trained, run) for run in runs]
    w = parts[0][1]
    method = deltasam.make_method(spec, nn.Linear(1, 1))
    factor = 1.0
    if isinstance(method, Scheduled):
        factor, method = float(number % 2 == 0), method.method
    values = {k: getattr(method, k) for k in deltasam.hyperparameters(type(method))}
    if "rho" in values:
        values["rho"] *= factor
    if values.get("share", "micro-batch") != "micro-batch":
        parts = [(together(parts), w)]
    if values.get("weights") in ("auto", "own_curvature"):
        values["weights"] = "norms" if method.name == "rw_sam" else "own_slope" if by_slopes else "own_curvature"
    function = getattr(reference, method.name) if factor else reference.erm
    known = inspect.signature(function).parameters
    kept = [dict(state) for _ in parts] if side_by_side else [state] * len(parts)
    total = {name: torch.zeros_like(v) for name, v in w.items()}
    for (losses, _), values["memory"] in zip(parts, kept, strict=True):
        if "noise" in known:
            values["noise"] = noise.pop(0) if noise else [torch.zeros_like(v) for v in w.values()]
        for name, g in function(losses, w, **{k: v for k, v in values.items() if k in known}).items():
            total[name] += g
    if side_by_side:
        state |= {n: sum(own[n] for own in kept) / len(kept) for n in kept[0]}
    return total


def together(parts: Sequence[tuple[reference.Losses, reference.Weights]]) -> reference.Losses:
    """The one loss of micro-batches whose losses add up."""
    return lambda w: torch.stack([losses(w).mean() for losses, _ in parts]).sum()[None]
