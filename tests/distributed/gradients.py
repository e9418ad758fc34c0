"""Started in several processes: each method's gradient under DDP and FSDP2 against what its equation says.

The arguments name what is wanted, a stack and a method or another part. The first process prints, as JSON, the relative
error of each case, or the error that was raised, and what the other parts give.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import deltasam
import distributed.launch  # noqa: F401 (before there is a group)
from deltasam import reference, weight_space
from deltasam.methods.bases import embeddings

RHO, ROWS = 0.3, 12
SPECS = [
    "erm",
    *(f"{name}:rho={RHO},share={share}" for name in ("sam", "asam") for share in ("micro-batch", "rank", "global")),
    f"delta_sam:rho={RHO},share=global",
    f"delta_sam:rho={RHO},weights=norms,share=global",
    f"delta_sam:rho={RHO},weights=norms,share=micro-batch",
    f"delta_sam:rho={RHO},weights=slopes,share=global",
    f"delta_sam:rho={RHO},weights=curvature,sigma=0.1,share=global",
    f"rw_sam:rho={RHO},weights=norms,share=micro-batch",
    f"rw_sam:rho={RHO},weights=slopes,share=micro-batch",
    *(f"friendly_sam:rho={RHO},sigma=0.5,share={share}" for share in ("micro-batch", "rank", "global")),
    f"per_instance_sam:rho={RHO}",
    f"per_instance_sam:rho={RHO},m=2",
    f"sam:rho={RHO},share=global@every=2",
]
# Those whose direction is known before the first pass, or partly: what they remember is made up, and the same in all.
REMEMBERING = [
    f"momentum_sam:rho={RHO}",
    f"s2_sam:rho={RHO}",
    f"random_sam:rho={RHO}",
    f"vasso:rho={RHO},theta=0.5",
    *(f"preconditioned_sam:rho={RHO},share={share}" for share in ("micro-batch", "global")),
    *(f"looksam:rho={RHO},k={k}" for k in (1, 2)),
]
SPECS += REMEMBERING
# Those that keep something of the plain gradient.
SPECS += [
    f"gsam:rho={RHO},alpha=0.5",
    f"wsam:rho={RHO},gamma=0.9",
    *(f"functional_sam:rho={RHO},share={share}" for share in ("micro-batch", "rank", "global")),
    f"per_instance_functional_sam:rho={RHO}",
    f"sam:rho={RHO},only=head",
    f"sam:rho={RHO},only=head,share=global",
    f"per_instance_sam:rho={RHO},only=head",
]
SPECS += [f"ae_sam:rho={RHO},threshold={threshold}" for threshold in (-9,)]
# Those that perturb no weights: the process's own examples are all there is to them.
OTHERS = [
    "r_drop:alpha=2",
    "r3f:lam=2,eps=0.5",
    "freelb:adv_lr=0.5,init_mag=0.3,max_norm=0.6",
    "smart:alpha=2,mu=1,step_size=0.3,sigma=0.1,steps=2",
    "smart:alpha=0,mu=1",
]
SPECS += OTHERS


class Net(nn.Module):
    """Sizes that two processes do not divide, a tied table, a part that is trained and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 7)
        self.frozen = nn.Linear(7, 7)
        self.block = nn.Sequential(nn.Linear(7, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 7))
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(7, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.block(self.frozen(self.table(x)).sin()) * self.scale
        return self.head(F.linear(hidden, self.table.weight).softmax(-1) @ self.table.weight).mean(1)


def model() -> Net:
    torch.manual_seed(0)
    return Net().double()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 11, (ROWS, 4)), torch.randint(0, 3, (ROWS,))


def losses(call: Callable[[Tensor], Tensor], rank: int | None = None) -> Tensor:
    x, y = data()
    rows = slice(None) if rank is None else slice(rank * ROWS // dist.get_world_size(), None)
    rows = slice(rows.start, None if rank is None else (rank + 1) * ROWS // dist.get_world_size())
    return F.cross_entropy(call(x[rows]), y[rows], reduction="none")


def noise() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model().named_parameters()
        if p.requires_grad
    }


def expected(spec: str) -> reference.Weights:
    """The mean over the processes, each with its own rows, by the equations; computed in every process alike."""
    if spec in OTHERS:
        return expected_of_others(spec)
    if spec in REMEMBERING:
        return expected_of_remembering(spec)
    method = deltasam.make_method(spec.partition("@")[0], model())
    size = dist.get_world_size()
    whole, w = reference.losses_function(model(), losses)
    parts = [reference.losses_function(model(), lambda call, r=r: losses(call, r))[0] for r in range(size)]
    if getattr(method, "only", None):
        return expected_of_only(method, whole, parts, w)
    if method.name in ("functional_sam", "per_instance_functional_sam"):
        return expected_of_functional(method)
    if method.name in ("erm", "per_instance_sam"):
        options = {"rho": RHO, "m": method.m} if method.name == "per_instance_sam" else {}
        return getattr(reference, method.name)(whole, w, **options)
    options = {"eta": method.eta} if method.name == "asam" else {}
    if method.name == "delta_sam":
        options = {"rho": RHO, "weights": method.weights, "sigma": method.sigma, "noise": list(noise().values())}
    if method.name == "rw_sam":
        options = {k: getattr(method, k) for k in ("tilt", "weights", "sigma")} | {"noise": list(noise().values())}
    if method.name == "ae_sam":  # the second step on the same rows: no deviation, but for rounding
        return {n: sum(reference.sam(p, w, rho=RHO)[n] for p in parts) / size for n in w}
    if method.name in ("gsam", "wsam"):
        options = {k: getattr(method, k) for k in ("alpha", "gamma") if hasattr(method, k)}
    if method.name == "friendly_sam":  # the second step on the same rows: the average is the gradient of them all
        options = {"sigma": method.sigma, "momentum": method.momentum, "memory": reference.erm(whole, w)}
    if getattr(method, "share", "micro-batch") != "global":
        function = getattr(reference, method.name)
        gradients = [function(part, w, **{"rho": RHO} | copy.deepcopy(options)) for part in parts]
        return {n: sum(g[n] for g in gradients) / size for n in w}
    if method.name != "delta_sam":
        return getattr(reference, method.name)(whole, w, rho=RHO, **options)
    # The ascents are those of the parts, each with weights of its own.
    ascents = [reference.delta_sam_ascent(part, w, **options) for part in parts]
    ascent = {n: sum(a[n] for a in ascents) / size for n in w}
    return reference.erm(whole, reference.moved(w, ascent, reference.step(RHO, ascent)))


def expected_of_remembering(spec: str) -> reference.Weights:
    """With noise in the place of the momentum, of the root of the second moment, of the last gradient, of the turn."""
    method, size = deltasam.make_method(spec, model()), dist.get_world_size()
    whole, w = reference.losses_function(model(), losses)
    parts = [reference.losses_function(model(), lambda call, r=r: losses(call, r))[0] for r in range(size)]
    known = noise()
    if method.name in ("momentum_sam", "s2_sam", "random_sam"):
        sign = -1 if method.name == "momentum_sam" else 1
        return reference.erm(whole, reference.moved(w, known, sign * reference.step(RHO, known)))
    if method.name == "vasso":  # the average of the gradient of all rows, twice
        return reference.sam(whole, w, rho=RHO)
    if method.name == "looksam" and method.k == 2:  # the second of two steps
        plain = [reference.erm(part, w) for part in parts]
        turns = [0.7 * reference.norm(g) / reference.norm(known) for g in plain]
        return {n: sum(g[n] + turn * known[n] for g, turn in zip(plain, turns, strict=True)) / size for n in w}
    if method.name == "looksam":
        gradients = [reference.sam(part, w, rho=RHO) for part in parts]
    else:
        squares = {n: v**2 for n, v in known.items()}
        ascents = [reference.preconditioned(reference.erm(part, w), squares, beta=0.999) for part in parts]
        if method.share == "global":
            ascents = [reference.preconditioned(reference.erm(whole, w), squares, beta=0.999)] * size
        gradients = [
            reference.erm(part, reference.moved(w, a, reference.step(RHO, a)))
            for part, a in zip(parts, ascents, strict=True)
        ]
    return {n: sum(g[n] for g in gradients) / size for n in w}


def expected_of_functional(method: Any) -> reference.Weights:
    """Each process has the slope of its own rows."""
    gradients, size = [], dist.get_world_size()
    whole, w = reference.losses_function(model(), losses)
    for rank in range(size):
        predict, _ = reference.predict_function(model(), lambda call, r=rank: losses(call, r))
        if method.name == "per_instance_functional_sam":
            gradients.append(reference.per_instance_functional_sam(predict, w, rho=RHO, m=1))
        elif method.share != "global":
            gradients.append(reference.functional_sam(predict, w, rho=RHO))
        else:
            ascent = reference.erm(whole, w)
            there = reference.moved(w, ascent, reference.step(RHO, ascent))
            of_each, outputs = predict(w)
            (slope,) = torch.autograd.grad(of_each.mean(), outputs)
            gradients.append(reference.gradient((predict(there)[1] * slope).sum(), there))
    return {n: sum(g[n] for g in gradients) / size for n in w}


def expected_of_only(
    method: Any, whole: reference.Losses, parts: list[reference.Losses], w: reference.Weights
) -> reference.Weights:
    """The head moves, and all parameters have a gradient."""

    def along(losses_of: Callable[[reference.Weights], Tensor], direction: reference.Weights) -> reference.Weights:
        head = {n: v if n.startswith("head") else torch.zeros_like(v) for n, v in direction.items()}
        return reference.erm(losses_of, reference.moved(w, head, reference.step(RHO, head)))

    if method.name == "per_instance_sam":
        of_one = [lambda v, i=i: whole(v)[i : i + 1] for i in range(ROWS)]
        gradients = [along(one, reference.erm(one, w)) for one in of_one]
    elif method.share == "global":
        gradients = [along(whole, reference.erm(whole, w))]
    else:
        gradients = [along(part, reference.erm(part, w)) for part in parts]
    return {n: sum(g[n] for g in gradients) / len(gradients) for n in w}


def average() -> reference.Weights:
    """Where SMART's average of the weights is."""
    trained = {n: p.detach() for n, p in model().named_parameters() if p.requires_grad}
    return {n: p + 0.1 * noise()[n] for n, p in trained.items()}


def drawn(x: Tensor) -> Tensor:
    """Noise in (-1, 1) that goes with the token."""
    return (1e4 * x).sin()


def expected_of_others(spec: str) -> reference.Weights:
    """The mean over the processes of what each finds from its own rows."""
    method, net, size = deltasam.make_method(spec, model()), model(), dist.get_world_size()
    oracle, gradients = getattr(reference, method.name), []
    for rank in range(size):
        predict, w = reference.predict_function(net, lambda call, r=rank: losses(call, r), net.table)
        rows = data()[0].chunk(size)[rank]
        given = {k: getattr(method, k) for k in deltasam.hyperparameters(type(method))}
        given |= {"predict": predict, "again": predict, "w": w, "average": average(), "lengths": [4] * len(rows)}
        given |= {
            "drawn": drawn(net.table.weight.detach()[rows]),
            "shares": torch.full((len(rows),), 1 / len(rows), dtype=torch.float64),
        }
        known = inspect.signature(oracle).parameters
        gradients.append(oracle(**{k: v for k, v in given.items() if k in known}))
    return {n: sum(g[n] for g in gradients) / size for n in w}


def full(t: Tensor | None, like: Tensor) -> Tensor:
    if t is None:
        return torch.zeros(like.shape, dtype=like.dtype)
    return t.full_tensor() if isinstance(t, DTensor) else t


def error(net: nn.Module, wanted: reference.Weights) -> float:
    found = {n.removeprefix("module."): full(p.grad, p) for n, p in net.named_parameters() if p.requires_grad}
    difference = torch.cat([(found[n] - g).flatten() for n, g in wanted.items()])
    mine = float(difference.norm() / torch.cat([g.flatten() for g in wanted.values()]).norm())
    worst = torch.tensor(mine)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


def shard(net: nn.Module, **options: Any) -> nn.Module:
    fully_shard(net.block, **options)
    fully_shard(net.head, **options)
    return fully_shard(net, **options)


STACKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "ddp unused": lambda net: DistributedDataParallel(net, find_unused_parameters=True),
    "fsdp": shard,
    "fsdp kept": lambda net: shard(net, reshard_after_forward=False),
}


def fix_noise(method: deltasam.Method, net: nn.Module) -> None:
    values = noise()
    trained = {n.removeprefix("module."): p for n, p in net.named_parameters() if p.requires_grad}
    parts = [
        distribute_tensor(values[n], p.device_mesh, p.placements).to_local() if isinstance(p, DTensor) else values[n]
        for n, p in trained.items()
    ]
    method._store.gaussian = lambda *_: parts  # type: ignore[method-assign]


def remember(method: Any, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a method and its optimizer a past that is noise."""
    values, moments = noise(), []
    for name, p in net.named_parameters():
        if p.requires_grad:
            value = values[name.removeprefix("module.")]
            sharded = distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value
            optimizer.state[p] = {"exp_avg": sharded, "exp_avg_sq": sharded.square()}
            p.grad = sharded.clone()
            moments.append((name, sharded))
    if method.name == "s2_sam":
        method._keep(optimizer)
    if method.name == "looksam":
        method.load_state_dict({"steps": method.k - 1, "turn": dict(moments)})


def case(stack: str, spec: str) -> float | str:
    net = STACKS[stack](model())
    before = {n: full(p.detach(), p).clone() for n, p in net.named_parameters()}
    method = deltasam.make_method(spec, net)
    if (hasattr(method, "sigma") and method.name != "friendly_sam") or method.name == "random_sam":
        fix_noise(method, net)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.1)
    method.follow(optimizer, total_steps=4)
    if spec in REMEMBERING:
        remember(method, net, optimizer)
    if "weight_average" in method.state_dict():
        for n, place in method.state_dict()["weight_average"].items():
            value = average()[n.removeprefix("module.")]
            place.copy_(
                distribute_tensor(value, place.device_mesh, place.placements) if isinstance(place, DTensor) else value
            )
    try:
        for _ in range(2):  # the second time without the engine's check
            net.zero_grad()
            with torch.no_grad():
                net(data()[0])  # an evaluation leaves the root's weights whole
            method.backward(lambda: losses(net, dist.get_rank()))
    except (ValueError, RuntimeError, NotImplementedError) as refusal:
        return f"{type(refusal).__name__}: {refusal}"
    found = error(net, expected(spec))
    for n, p in net.named_parameters():
        assert torch.equal(full(p.detach(), p), before[n]), f"{stack} {spec} moved {n}"
        assert p.requires_grad or p.grad is None
    return found


def norms() -> dict[str, float]:
    """The norm of a sharded vector: ours, the truth, and what one process sees of it."""
    net = shard(model())
    losses(net, dist.get_rank()).mean().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    whole = torch.cat([g.full_tensor().flatten() for g in gradients])
    here = torch.cat([g.to_local().flatten() for g in gradients])
    return {"ours": float(weight_space.norm(gradients)), "true": float(whole.norm()), "local": float(here.norm())}


class Talk(TorchDispatchMode):
    """Counts what processes say to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and not func.name().startswith(
            ("c10d::_wrap", "_c10d_functional::_wrap", "_c10d_functional::wait")
        ):
            self.counts[func.name().partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


def collectives(spec: str) -> dict[str, int]:
    """How often processes talk in a step under FSDP2, after two that are checked: it sets itself up in the first."""
    net = shard(model())
    method = deltasam.make_method(spec, net)
    for _ in range(3):
        net.zero_grad()
        with Talk() as talk:
            method.backward(lambda: losses(net, dist.get_rank()))
    return dict(talk.counts)


def without_synchronisation(spec: str) -> float | str:
    """Two micro-batches under FSDP2, of which the first does not synchronise gradients."""
    net = shard(model())
    method = deltasam.make_method(spec, net)
    try:
        for last in (False, True):
            net.set_requires_gradient_sync(last)
            method.backward(lambda: losses(net, dist.get_rank()) / 2)
    except RuntimeError as refusal:
        return f"{type(refusal).__name__}: {refusal}"
    return error(net, expected(spec))


COUNTED = ("erm", f"per_instance_sam:rho={RHO}", f"sam:rho={RHO},share=global")
PARTS: dict[str, Callable[[], Any]] = {
    "norms": norms,
    "collectives": lambda: {spec.partition(":")[0]: collectives(spec) for spec in COUNTED},
    "no sync": lambda: {spec.partition(":")[0]: without_synchronisation(spec) for spec in COUNTED},
}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # Uniform noise is drawn from (0, 1) and then brought to (-1, 1).
    embeddings.sample_noise = lambda sampler, x, *_: (drawn(x) + 1) / 2 if sampler is torch.rand else drawn(x)  # type: ignore[assignment]
    result = {name: PARTS[name]() if name in PARTS else case(*name.split(" | ")) for name in sys.argv[1:]}
    if dist.get_rank() == 0:
        print(json.dumps(result))
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
