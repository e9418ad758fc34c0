"""Started in several processes: each method's gradient under DDP and FSDP2 against what its equation says.

The first process prints, as JSON, the relative error of each case, or the error that was raised.
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
    method = deltasam.make_method(spec.partition("@")[0], model())
    size = dist.get_world_size()
    whole, w = reference.losses_function(model(), losses)
    parts = [reference.losses_function(model(), lambda call, r=r: losses(call, r))[0] for r in range(size)]
    if method.name in ("erm", "per_instance_sam"):
        options = {"rho": RHO, "m": method.m} if method.name == "per_instance_sam" else {}
        return getattr(reference, method.name)(whole, w, **options)
    options = {"eta": method.eta} if method.name == "asam" else {}
    if method.name == "delta_sam":
        options = {"rho": RHO, "weights": method.weights, "sigma": method.sigma, "noise": list(noise().values())}
    if method.name == "rw_sam":
        options = {k: getattr(method, k) for k in ("tilt", "weights", "sigma")} | {"noise": list(noise().values())}
    if method.name == "friendly_sam":  # the second step on the same rows: the average is the gradient of them all
        options = {"sigma": method.sigma, "momentum": method.momentum, "memory": reference.erm(whole, w)}
    if method.share != "global":
        function = getattr(reference, method.name)
        gradients = [function(part, w, **{"rho": RHO} | copy.deepcopy(options)) for part in parts]
        return {n: sum(g[n] for g in gradients) / size for n in w}
    if method.name != "delta_sam":
        return getattr(reference, method.name)(whole, w, rho=RHO, **options)
    # The ascents are those of the parts, each with weights of its own.
    ascents = [reference.delta_sam_ascent(part, w, **options) for part in parts]
    ascent = {n: sum(a[n] for a in ascents) / size for n in w}
    return reference.erm(whole, reference.moved(w, ascent, reference.step(RHO, ascent)))


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


def case(stack: str, spec: str) -> float | str:
    net = STACKS[stack](model())
    before = {n: full(p.detach(), p).clone() for n, p in net.named_parameters()}
    method = deltasam.make_method(spec, net)
    if hasattr(method, "sigma") and method.name != "friendly_sam":
        fix_noise(method, net)
    method.follow(torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1), total_steps=4)
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


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # Uniform noise is drawn from (0, 1) and then brought to (-1, 1).
    embeddings.sample_noise = lambda sampler, x, *_: (drawn(x) + 1) / 2 if sampler is torch.rand else drawn(x)  # type: ignore[assignment]
    result: dict[str, Any] = {f"{stack} | {spec}": case(stack, spec) for stack in STACKS for spec in SPECS}
    result["norms"] = norms()
    counted = ("erm", f"per_instance_sam:rho={RHO}", f"sam:rho={RHO},share=global")
    result["collectives"] = {spec.partition(":")[0]: collectives(spec) for spec in counted}
    result["no sync"] = {spec.partition(":")[0]: without_synchronisation(spec) for spec in counted}
    if dist.get_rank() == 0:
        print(json.dumps(result))
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
