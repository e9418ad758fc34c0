"""Random draws of a method with random hyper-parameters and a small model, against the equations.

    python benchmarks/adversary/methods.py --draws 0:700 --jobs 2
    python benchmarks/adversary/methods.py --draw 12       # one, with the whole message

Every registered method is drawn equally often; one whose equation is not here is reported as ``no equation``.
Random numbers that a method draws by itself (noise of weights or embeddings, fresh dropout masks) are not
reproduced from its source: methods that need them are drawn where they do not matter (no dropout) or, for noise of
the weights, with the noise that was really used, seen as the difference of the weights from pass to pass.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from adversary import record
from adversary.judge import TOLERANCE, Outcome, of_exception, worst
from adversary.oracle import Answer, Generators, Gradient, Oracle, difference, moved_copy
from deltasam.per_example import outer_products as outer

STEPS, SMALL = 3, outer.SMALL
VOCABULARY, CLASSES = 7, 3


class Classifier(nn.Module):
    """Token ids [n, t] and a mask to logits [n, classes], by one of a few bodies."""

    def __init__(self, kind: str, width: int, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.layer = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, 3, padding=1) if kind == "convolution" else None
        self.scale = nn.Parameter(torch.tensor(0.8))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits."""
        mask = attention_mask
        h = self.embedding(input_ids)
        if self.kind == "attention":
            scores = self.layer(h) @ h.mT
            h = h + scores.masked_fill(~mask[:, None], -1e9).softmax(-1) @ h
        elif self.convolution is not None:
            h = self.convolution(h.transpose(1, 2)).transpose(1, 2)
        h = self.norm(self.drop(torch.tanh(self.layer(h)) * self.scale))
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Draw:
    """A method, a model and batches, all from one seed.

    Attributes:
        spec: The method.
        model: The model before the first step.
        batches: Of every step: ids, mask and labels.
        scalar: The closure returns the mean.
    """

    def __init__(self, seed: int) -> None:
        r = random.Random(seed)
        names = deltasam.method_names()
        self.name = names[seed % len(names)]
        self.values = HYPERPARAMETERS.get(self.name, lambda _: {})(r)
        self.spec = self.name + (":" + ",".join(f"{k}={v}" for k, v in self.values.items()) if self.values else "")
        dropout = r.choice([0.0, 0.3]) if self.name not in FRESH else 0.0
        torch.manual_seed(seed)
        self.model = Classifier(r.choice(["plain", "attention", "convolution"]), r.choice([4, 6]), dropout)
        if r.random() < 0.2:
            self.model.norm.requires_grad_(False)
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        n, t = r.choice([2, 4, 6]), r.randint(2, 5)
        self.batches = []
        for _ in range(STEPS):
            mask = torch.arange(t) < torch.randint(1, t + 1, (n,))[:, None]
            ids = torch.randint(1, VOCABULARY, (n, t)) * mask
            self.batches.append((ids, mask, torch.randint(0, CLASSES, (n,))))
        by_losses = ("slopes", "curvature", "auto", "own_curvature")
        example_losses = self.values.get("weights") in by_losses or self.values.get("unsupported") == "loop"
        self.scalar = not example_losses and r.random() < 0.3

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> Callable[[nn.Module], Tensor]:
        """One loss per example."""
        ids, mask, labels = batch
        return lambda model: F.cross_entropy(model(ids, mask), labels, reduction="none")


def _radius(r: random.Random) -> dict[str, Any]:
    return {"rho": round(10 ** r.uniform(-3, -0.3), 5) if r.random() < 0.95 else 0.0}


# What is drawn for each method; and the methods that draw noise or masks which the oracle does not see.
FRESH = ("r_drop", "r3f", "smart", "freelb")
HYPERPARAMETERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "sam": lambda r: {**_radius(r), "share": r.choice(["micro-batch", "rank", "global"])},
    "asam": lambda r: {"rho": round(r.uniform(0, 1), 4), "eta": round(10 ** r.uniform(-4, 0), 6)},
    "friendly_sam": lambda r: {
        **_radius(r),
        "sigma": round(r.uniform(0, 1.5), 3),
        "momentum": round(r.uniform(0, 0.99), 3),
    },
    "per_instance_sam": lambda r: {
        **_radius(r),
        "m": r.choice([1, 2]),
        "unsupported": r.choice(["error", "skip", "loop"]),
    },
    "delta_sam": lambda r: {
        **_radius(r),
        "weights": r.choice(["norms", "auto", "own_curvature", "slopes", "curvature"]),
        "sigma": round(10 ** r.uniform(-3, -1), 5),
    },
    "rw_sam": lambda r: {
        **_radius(r),
        "weights": r.choice(["norms", "slopes"]),
        "tilt": round(r.uniform(0, 3), 3),
        "sigma": round(10 ** r.uniform(-3, -1), 5),
    },
    "gsam": lambda r: {**_radius(r), "alpha": round(r.uniform(0, 1), 3)},
    "wsam": lambda r: {**_radius(r), "gamma": round(r.uniform(0, 0.95), 3)},
    "vasso": lambda r: {**_radius(r), "theta": round(r.uniform(0.1, 1), 3)},
    "looksam": lambda r: {**_radius(r), "k": r.randint(1, 3), "alpha": round(r.uniform(0, 1), 3)},
    "ae_sam": lambda r: {
        **_radius(r),
        "threshold": round(r.uniform(-2, 2), 2),
        "momentum": round(r.uniform(0, 0.9), 2),
    },
    "functional_sam": lambda r: {**_radius(r), "share": r.choice(["micro-batch", "rank", "global"])},
    "per_instance_functional_sam": lambda r: {**_radius(r), "m": r.choice([1, 2])},
    "preconditioned_sam": _radius,
    "preconditioned_functional_sam": _radius,
    "momentum_sam": _radius,
    "s2_sam": _radius,
    "random_sam": _radius,
    "flat_lora": _radius,
    "r_drop": lambda r: {"alpha": round(r.uniform(0, 2), 3)},
    "r3f": lambda r: {
        "lam": round(r.uniform(0, 2), 3),
        "eps": 0.0,
        "dropout": r.choice(["fresh", "same"]),
        "noise": r.choice(["uniform", "normal"]),
    },
    "freelb": lambda r: {
        "steps": r.randint(1, 4),
        "adv_lr": round(r.uniform(0, 0.5), 3),
        "init_mag": 0.0,
        "max_norm": r.choice([0.0, 0.3]),
    },
    "smart": lambda r: {
        "alpha": round(r.uniform(0, 2), 3),
        "mu": round(r.uniform(0.1, 2), 3),
        "sigma": 0.0,
        "step_size": 0.0,
        "beta": round(r.uniform(0, 1), 3),
        "steps": 1,
    },
}


def expected(
    draw: Draw, model: nn.Module, batch: Any, memory: dict[str, Any], start: Generators, noise: Gradient | None
) -> Answer | None:
    """What the method's equation gives; None where there is none here.

    Args:
        draw: The method.
        model: At the weights of this step.
        batch: Of this step.
        memory: What the method carries from step to step.
        start: The random state before the step.
        noise: The direction d that the method drew.
    """
    oracle, v = Oracle(model, draw.losses(batch), None, start), draw.values
    rho = float(v.get("rho", 0))
    if draw.name == "erm" or draw.name in (
        "r_drop",
        "r3f",
    ):  # two equal predictions: the divergence and its gradient are 0
        return oracle.erm()
    if draw.name == "sam":
        return oracle.sam(rho)
    if draw.name == "asam":
        return oracle.asam(rho, v["eta"])
    if draw.name == "friendly_sam":
        return oracle.friendly_sam(rho, v["sigma"], v["momentum"], memory)
    if draw.name == "per_instance_sam":
        return oracle.per_instance_sam(rho, v["m"])
    if draw.name in ("delta_sam", "rw_sam"):
        if v["weights"] in ("norms", "auto", "own_curvature"):
            if draw.name == "rw_sam":
                return oracle.rw_sam(rho, v["tilt"])
            return oracle.delta_sam(rho, by_norms=v["weights"] == "norms")
        return None if noise is None else oracle.estimated(rho, noise, v["sigma"], WEIGHTS[draw.name](v))
    if draw.name in NEWER:
        return NEWER[draw.name](draw, model, batch, oracle, memory, start, noise)
    if draw.name == "freelb":
        return _freelb(draw, model, batch)
    if draw.name == "smart":
        return _smart(draw, model, batch, memory)
    return None


def _of_two(draw: Draw, model: nn.Module, batch: Any, oracle: Oracle, memory: dict[str, Any], *_: Any) -> Answer:
    """GSAM, WSAM, LookSAM, AE-SAM: made of g and g_s."""
    v, plain = draw.values, oracle.erm()
    rho, g = v["rho"], plain.gradient
    number = memory["number"] = memory.get("number", -1) + 1
    if rho == 0:
        return plain
    g_s = oracle.sam(rho).gradient
    if draw.name == "gsam":
        along = _dot(g, g_s) / _dot(g_s, g_s)
        return Answer({n: g_s[n] - v["alpha"] * (g[n] - along * g_s[n]) for n in g}, plain.loss)
    if draw.name == "wsam":
        weight = v["gamma"] / (1 - v["gamma"])
        return Answer({n: g[n] + weight * (g_s[n] - g[n]) for n in g}, plain.loss)
    if draw.name == "looksam":
        if number % v["k"]:
            turn = memory["turn"]
            factor = v["alpha"] * (_dot(g, g) / _dot(turn, turn)).sqrt()
            return Answer({n: g[n] + factor * turn[n] for n in g}, plain.loss)
        along = _dot(g, g_s) / _dot(g, g)
        memory["turn"] = {n: g_s[n] - along * g[n] for n in g}
        return Answer(g_s, plain.loss)
    square, keep, first = _dot(g, g), v["momentum"], number == 0
    memory["mean"] = square if first else keep * memory["mean"] + (1 - keep) * square
    away = (square - memory["mean"]) ** 2
    memory["variance"] = 0 * away if first else keep * memory["variance"] + (1 - keep) * away
    large = first or square >= memory["mean"] + v["threshold"] * memory["variance"].sqrt()
    return Answer(g_s if large else g, plain.loss)


def _vasso(draw: Draw, model: nn.Module, batch: Any, oracle: Oracle, memory: dict[str, Any], *_: Any) -> Answer:
    theta = draw.values["theta"]
    for n, v in oracle.erm().gradient.items():
        memory[n] = (1 - theta) * memory[n] + theta * v if n in memory else v
    return oracle.along(dict(memory), draw.values["rho"])


def _known(
    draw: Draw, model: nn.Module, batch: Any, oracle: Oracle, memory: dict[str, Any], start: Any, noise: Gradient | None
) -> Answer:
    """One pass: along the optimizer's momentum, the last gradient, or the noise that was really used."""
    if draw.name in ("random_sam", "flat_lora"):
        return oracle.at(noise) if noise else oracle.erm()
    if not memory:
        return oracle.erm()
    zeros = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    direction = {n: memory.get(n, z) for n, z in zeros.items()}
    length = _dot(direction, direction).sqrt()
    sign = -1 if draw.name == "momentum_sam" else 1
    return oracle.at({n: sign * draw.values["rho"] / length * d for n, d in direction.items()})


def _functional(
    draw: Draw, model: nn.Module, batch: Any, oracle: Oracle, memory: dict[str, Any], start: Generators, *_: Any
) -> Answer:
    """The Jacobian at the perturbed weights, of a group of examples or of all, with the slope of the plain ones."""
    ids, mask, labels = batch
    size, rho, total, plain = draw.values.get("m", len(ids)), draw.values["rho"], {}, oracle.erm()
    for first in range(0, len(ids), size):
        rows = slice(first, first + size)
        one = copy.deepcopy(model)
        start.restore()
        logits = one(ids, mask)
        loss = F.cross_entropy(logits, labels, reduction="none")[rows].mean()
        slope, *gradients = torch.autograd.grad(
            loss, [logits, *(p for p in one.parameters() if p.requires_grad)], allow_unused=True
        )
        names = [n for n, p in one.named_parameters() if p.requires_grad]
        g = {n: v for n, v in zip(names, gradients, strict=True) if v is not None}
        d = _preconditioned(model, g, memory) if draw.name.startswith("preconditioned") else g
        length = _dot(d, d).sqrt()
        there = copy.deepcopy(model)
        with torch.no_grad():
            for n, p in there.named_parameters():
                if n in d:
                    p.add_(rho / length * d[n])
        start.restore()
        (there(ids, mask) * slope).sum().backward()
        for n, p in there.named_parameters():
            if p.requires_grad:
                moved = torch.zeros_like(p) if p.grad is None else p.grad
                total[n] = total.get(n, 0) + moved * size / len(ids)
    return Answer(total, plain.loss)


def _preconditioned_sam(
    draw: Draw, model: nn.Module, batch: Any, oracle: Oracle, memory: dict[str, Any], *_: Any
) -> Answer:
    return oracle.along(_preconditioned(model, oracle.erm().gradient, memory), draw.values["rho"])


def _preconditioned(model: nn.Module, g: Gradient, memory: dict[str, Any]) -> Gradient:
    """``g / (r + rms(r) / 100)``, ``r = sqrt(0.999 v + 0.001 g^2)``."""
    root = {n: (0.999 * memory.get(n, 0 * v) + 0.001 * v**2).sqrt() for n, v in g.items()}
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    damping = (sum(r.square().sum() for r in root.values()) / count).sqrt() / 100
    return {n: v / (root[n] + damping) for n, v in g.items()}


def _dot(a: Gradient, b: Gradient) -> Tensor:
    return torch.stack([(a[n] * b[n]).sum() for n in a]).sum()


def _remembered(draw: Draw, memory: dict[str, Any], found: Gradient) -> None:
    """What the optimizer keeps of a step's gradient."""
    for n, g in found.items():
        if draw.name.startswith("preconditioned"):
            memory[n] = 0.999 * memory.get(n, 0 * g) + 0.001 * g**2
        elif draw.name == "momentum_sam":
            memory[n] = 0.9 * memory.get(n, 0 * g) + g
        elif draw.name == "s2_sam":
            memory[n] = g


NEWER: dict[str, Callable[..., Answer]] = {
    **dict.fromkeys(("gsam", "wsam", "looksam", "ae_sam"), _of_two),
    **dict.fromkeys(("momentum_sam", "s2_sam", "random_sam", "flat_lora"), _known),
    **dict.fromkeys(("functional_sam", "per_instance_functional_sam", "preconditioned_functional_sam"), _functional),
    "preconditioned_sam": _preconditioned_sam,
    "vasso": _vasso,
}


def _delta_weights(v: dict[str, Any]) -> Callable[..., Tensor]:
    def weigh(at: Tensor, above: Tensor, below: Tensor) -> Tensor:
        if v["weights"] == "slopes":
            p = (above - at).abs().sqrt()
        else:
            slope = (above - below).abs()
            raw = (above + below - 2 * at) ** 2 / torch.maximum(slope, 0.1 * slope.mean())
            p = torch.minimum(raw / raw.mean(), torch.tensor(4.0))
            p = 1 + p / p.mean()
        return p / p.mean()

    return weigh


def _gibbs_weights(v: dict[str, Any]) -> Callable[..., Tensor]:
    def weigh(at: Tensor, above: Tensor, _: Tensor) -> Tensor:
        size = (above - at).abs()
        p = torch.exp(v["tilt"] * size / size.mean())
        return len(p) * p / p.sum()

    return weigh


WEIGHTS: dict[str, Callable[[dict[str, Any]], Callable[..., Tensor]]] = {
    "delta_sam": _delta_weights,
    "rw_sam": _gibbs_weights,
}


def _freelb(draw: Draw, model: nn.Module, batch: Any) -> Answer:
    """``mean_t grad_w L(w, x + delta_t)``, from delta_1 = 0, example by example."""
    ids, mask, labels = batch
    v, total, first = draw.values, {}, None
    steps = 1 if v["adv_lr"] == 0 else v["steps"]
    delta = [torch.zeros(ids.shape[1], model.embedding.embedding_dim) for _ in ids]
    for _ in range(steps):
        one = moved_copy(model, None)
        offset = torch.stack(delta).requires_grad_()
        one.embedding.register_forward_hook(lambda _m, _i, x, offset=offset: x + offset)
        loss = F.cross_entropy(one(ids, mask), labels)
        loss.backward()
        first = loss.detach() if first is None else first
        for name, p in one.named_parameters():
            if p.requires_grad:
                total[name] = total.get(name, 0) + (0 if p.grad is None else p.grad) / steps
        for i, g in enumerate(offset.grad):
            g = g * mask[i][:, None]
            row = delta[i] + (v["adv_lr"] * g / g.norm() if g.norm() > 0 else 0)
            delta[i] = row * v["max_norm"] / row.norm() if 0 < v["max_norm"] < row.norm() else row
    return Answer(total, first)


def _smart(draw: Draw, model: nn.Module, batch: Any, memory: dict[str, Any]) -> Answer:
    """``grad [L + mu D(p, p_average)]``: with noise of size 0 the smoothness has the gradient 0."""
    ids, mask, labels = batch
    one, average = moved_copy(model, None), moved_copy(model, None)
    with torch.no_grad():
        for name, p in average.named_parameters():
            if name in memory:
                p.copy_(memory[name])
        q = average(ids, mask).softmax(-1)
    logits = one(ids, mask)
    p = logits.softmax(-1)
    symmetric = (p * (p.log() - q.log())).sum(-1) + (q * (q.log() - p.log())).sum(-1)
    loss = F.cross_entropy(logits, labels)
    (loss + draw.values["mu"] * symmetric.mean()).backward()
    gradient = {
        n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in one.named_parameters() if w.requires_grad
    }
    return Answer(gradient, loss.detach())


def judge(seed: int) -> tuple[str, Outcome]:
    """The spec of a draw, and the outcome of its steps."""
    torch.set_default_dtype(torch.float64)
    outer.SMALL = 0 if seed % 2 else SMALL  # the forms for large layers
    draw = Draw(seed)
    model, memory = copy.deepcopy(draw.model), {}
    trained = [p for p in model.parameters() if p.requires_grad]
    if draw.name.startswith("preconditioned"):
        optimizer: torch.optim.Optimizer = torch.optim.Adam(trained, lr=0.01)
    else:
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9 if draw.name == "momentum_sam" else 0.0)
    outcomes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = deltasam.make_method(draw.spec, model)
            method.follow(optimizer, total_steps=STEPS)
            if draw.name == "smart":
                memory.update({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
            for batch in draw.batches:
                before, start = copy.deepcopy(model), Generators()
                losses, seen = draw.losses(batch), []

                def closure(losses: Any = losses, seen: list[Gradient] = seen) -> Any:
                    seen.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
                    return losses(model).mean() if draw.scalar else losses(model)

                step = method.backward(closure)
                found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                optimizer.step()
                optimizer.zero_grad()
                after = Generators()
                wanted = expected(draw, before, batch, memory, start, _noise(draw, seen, before))
                _remembered(draw, memory, found)
                after.restore()
                if draw.name == "smart":
                    for n, p in model.named_parameters():
                        if n in memory:
                            memory[n] = draw.values["beta"] * memory[n] + (1 - draw.values["beta"]) * p.detach()
                outcomes.append(_compare(step, found, wanted))
    except Exception as error:  # noqa: BLE001 - whatever comes out is judged
        outcomes.append(of_exception(error))
    return draw.spec, worst([o for o in outcomes if o.kind != "no equation"] or outcomes)


def _noise(draw: Draw, seen: list[Gradient], before: nn.Module) -> Gradient | None:
    """The noise that a method moved the weights by: in its only pass, or in its second, over its size."""
    if draw.name in ("random_sam", "flat_lora"):
        at = {n: p.detach() for n, p in before.named_parameters()}
        return {n: w - at[n] for n, w in seen[0].items()}
    if draw.values.get("weights") not in ("slopes", "curvature") or len(seen) < 2:
        return None
    noise = {n: (seen[1][n] - seen[0][n]) / draw.values["sigma"] for n in seen[0]}
    return {n: z.sign() for n, z in noise.items()} if draw.name == "rw_sam" else noise


def _compare(step: Any, found: Gradient, wanted: Answer | None) -> Outcome:
    if wanted is None:
        return Outcome("no equation")
    # The noise is seen through differences of weights, whose last bits are lost.
    errors = {
        "gradient": difference(found, wanted.gradient),
        "loss": float((step.loss - wanted.loss).abs() / wanted.loss.abs()),
    }
    name = max(errors, key=lambda n: errors[n])
    if errors[name] < TOLERANCE:
        return Outcome("exact", error=errors[name])
    return Outcome("wrong", name, errors[name])


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", default="0:700", help="from:to")
    parser.add_argument("--draw", type=int, help="one draw")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "methods.json", help="where the record goes")
    arguments = parser.parse_args()
    if arguments.draw is not None:
        spec, outcome = judge(arguments.draw)
        print(spec, outcome.kind, f"{outcome.error:.1e}", outcome.reason, outcome.detail, sep="\n")
        return
    first, last = map(int, arguments.draws.split(":"))
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        rows = list(zip(range(first, last), pool.map(judge, range(first, last), chunksize=10), strict=True))
    found = dict(sorted(record.counts((spec.partition(":")[0], outcome.kind) for _, (spec, outcome) in rows).items()))
    print(record.table(found, "method"))
    bad = [{"draw": seed, "spec": spec, **vars(o)} for seed, (spec, o) in rows if o.kind not in ("exact",)]
    for row in bad[:60]:
        print(f"{row['kind']:10s} draw {row['draw']:4d} {row['error']:.1e} {row['spec']}: {row['reason']}")
    record.write(arguments.output, {"tool": "methods", "draws": [first, last], "counts": found, "not exact": bad})
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
