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
    state: dict[str, Any],
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
    if factor and method.name == "looksam":
        return looksam_gradient([losses for losses, _ in parts], w, values, state)
    if method.name == "vasso" and side_by_side:  # all move along the average of what is all processes' gradient
        parts = [(together(parts), w)]
    if factor and method.name == "ae_sam" and side_by_side:
        return ae_sam_gradient([losses for losses, _ in parts], w, values, state)
    # What the optimizer keeps is the same for all parts of a step; what a method keeps goes from one to the next.
    of_optimizer = method.name in ("momentum_sam", "s2_sam") or method.name.startswith("preconditioned")
    kept = [dict(state) for _ in parts] if side_by_side or of_optimizer else [state] * len(parts)
    total = {name: torch.zeros_like(v) for name, v in w.items()}
    for (losses, _), run, values["memory"] in zip(parts, runs[: len(parts)], kept[: len(parts)], strict=True):
        if "predict" in known:
            values["predict"], _ = reference.predict_function(trained, run)
        if values.get("only"):
            return only_gradient([losses for losses, _ in parts], w, values)
        if "noise" in known:
            values["noise"] = noise.pop(0) if noise else [torch.zeros_like(v) for v in w.values()]
        given = {"losses": losses, "w": w, **values}
        if "functional" in method.name and "per_instance" not in method.name:
            gradient = functional_gradient(trained, run, w, values, method.name)
        else:
            gradient = function(**{k: v for k, v in given.items() if k in known})
        for name, g in gradient.items():
            total[name] += g
    if side_by_side and not of_optimizer and kept[0]:
        state |= {n: sum(own[n] for own in kept) / len(kept) for n in kept[0]}
    return total


def functional_gradient(
    trained: nn.Module, run: Callable[[Callable[..., Any]], Tensor], w: Any, values: dict[str, Any], method: str
) -> Any:
    """Functional SAM of a mean loss whose model runs more than once: the slope is in all logits it returns."""
    seen: list[Tensor] = []

    def remembering(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            seen.append(output if isinstance(output, Tensor) else output.logits)
            return output

        return called

    losses, _ = reference.losses_function(trained, lambda call: run(remembering(call)))
    loss, outputs = losses(w).mean(), list(seen)
    slopes = torch.autograd.grad(loss, outputs, retain_graph=True)
    d = reference.gradient(loss, w)
    if method.startswith("preconditioned"):
        d = reference.preconditioned(d, values["memory"], beta=0.999)
    there = reference.moved(w, d, reference.step(values["rho"], d))
    seen.clear()
    losses(there)
    return reference.gradient(sum((x * s).sum() for x, s in zip(seen, slopes, strict=True)), there)


def ae_sam_gradient(parts: list[reference.Losses], w: Any, values: dict[str, Any], state: dict[str, Any]) -> Any:
    """One step of AE-SAM in several processes, which decide together by the mean of their norms."""
    plain = [reference.erm(losses, w) for losses in parts]
    square = torch.stack([reference.norm(g) for g in plain]).mean() ** 2
    first, keep = not state, values["momentum"]
    state["mu"] = square if first else keep * state["mu"] + (1 - keep) * square
    away = (square - state["mu"]) ** 2
    state["variance"] = 0 * away if first else keep * state["variance"] + (1 - keep) * away
    if first or square >= state["mu"] + values["threshold"] * state["variance"].sqrt():
        plain = [reference.sam(losses, w, rho=values["rho"]) for losses in parts]
    return {n: sum(g[n] for g in plain) for n in w}


def looksam_gradient(parts: list[reference.Losses], w: Any, values: dict[str, Any], state: dict[str, Any]) -> Any:
    """One step of LookSAM: the direction is made of the sums over all parts, and turns each of them."""
    number = state.get("number", 0)
    state["number"] = number + 1
    plain = [reference.erm(losses, w) for losses in parts]
    if number % values["k"]:
        v = state["v"]
        turns = [values["alpha"] * reference.norm(g) / reference.norm(v) for g in plain]
        return {n: sum(g[n] + turn * v[n] for g, turn in zip(plain, turns, strict=True)) for n in w}
    perturbed = [reference.sam(losses, w, rho=values["rho"]) for losses in parts]
    g, g_s = ({n: sum(of[n] for of in some) for n in w} for some in (plain, perturbed))
    along = sum((g[n] * g_s[n]).sum() for n in w) / reference.norm(g) ** 2
    state["v"] = {n: g_s[n] - along * g[n] for n in w}
    return g_s


def only_gradient(parts: list[reference.Losses], w: Any, values: dict[str, Any]) -> Any:
    """One step of SAM that moves the normalisation layers only."""
    total = {n: torch.zeros_like(v) for n, v in w.items()}
    for losses in parts:
        g = {
            n: v if "LayerNorm" in n or "norm" in n else torch.zeros_like(v)
            for n, v in reference.erm(losses, w).items()
        }
        for n, v in reference.erm(losses, reference.moved(w, g, reference.step(values["rho"], g))).items():
            total[n] += v
    return total


def together(parts: Sequence[tuple[reference.Losses, reference.Weights]]) -> reference.Losses:
    """The one loss of micro-batches whose losses add up."""
    return lambda w: torch.stack([losses(w).mean() for losses, _ in parts]).sum()[None]
