"""One step of per-instance SAM on a model and a batch, and what it must be by the equations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import deltasam
from deltasam import reference

RHO = 0.3
SEED = 3
Losses = Callable[[Callable[..., Any]], Tensor]
"""Losses of a batch, one per example, with something to call in place of the model."""


@dataclass
class Taken:
    """One step: what it did, how many forwards it took, and what it warned of."""

    step: deltasam.Step
    gradient: dict[str, Tensor | None]
    forwards: int
    warnings: list[str] = field(default_factory=list)


def take(model: nn.Module, run: Losses, *, steps: int = 1, rho: float = RHO, **options: Any) -> Taken:
    """The last of some steps, all from the same random state."""
    method = deltasam.PerInstanceSAM(model, rho=rho, **options)
    calls: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            model.zero_grad()
            calls.clear()
            torch.manual_seed(SEED)
            step = method.backward(lambda: (calls.append(0), run(model))[1])
    gradient = {n: p.grad for n, p in model.named_parameters()}
    return Taken(step, gradient, len(calls), [str(w.message) for w in caught if "SAM" in str(w.message)])


def expected(model: nn.Module, run: Losses, m: int = 1, held: Sequence[str] = ()) -> reference.Weights:
    """The gradient by the equations; ``held`` parameters are not perturbed and do not count in the norm."""
    torch.manual_seed(SEED)
    losses, w = reference.losses_function(model, run)
    if not held:
        return reference.per_instance_sam(losses, w, rho=RHO, m=m)
    n = len(losses(w))
    total = {name: torch.zeros_like(v) for name, v in w.items()}
    for i in range(n):
        g = {k: v * (k not in held) for k, v in reference.gradient(losses(w)[i], w).items()}
        there = reference.moved(w, g, reference.step(RHO, g))
        for name, v in reference.gradient(losses(there)[i], there).items():
            total[name] += v / n
    return total


def norms(model: nn.Module, run: Losses) -> Tensor:
    """The norm of every example's gradient, one by one [n]."""
    torch.manual_seed(SEED)
    losses, w = reference.losses_function(model, run)
    return torch.stack([reference.norm(reference.gradient(losses(w)[i], w)) for i in range(len(losses(w)))])


def error(actual: dict[str, Tensor | None], wanted: reference.Weights) -> float:
    """Relative to the norm of what is wanted; a gradient that is None counts as 0."""
    found = {n: torch.zeros_like(v) if actual[n] is None else actual[n] for n, v in wanted.items()}
    a = torch.cat([v.flatten() for v in found.values()])
    b = torch.cat([v.flatten() for v in wanted.values()])
    return float((a - b).norm() / b.norm())


def assert_exact(model: nn.Module, run: Losses, *, ms: Sequence[int] = (1, 2), tolerance: float = 1e-10) -> None:
    """In two passes, with nothing to complain about."""
    for m in ms:
        wanted = expected(model, run, m)
        taken = take(model, run, m=m, steps=2)  # the first is checked
        assert taken.warnings == []
        assert taken.forwards == 2
        assert error(taken.gradient, wanted) < tolerance
        if m == 1:
            torch.testing.assert_close(taken.step.metrics["group_grad_norms"], norms(model, run), rtol=1e-8, atol=1e-12)


def everything(model: nn.Module) -> Any:
    """All that a step could leave behind: values, identities, hooks, attributes, random state, function modes."""
    attributes = {
        name: {k: list(v) if isinstance(v, dict) else id(v) for k, v in vars(module).items()}
        for name, module in model.named_modules()
    }
    values = {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    places = {n: (id(p), p.data_ptr(), p.grad, p._backward_hooks) for n, p in model.named_parameters()}
    return attributes, values, places, torch.get_rng_state(), torch._C._len_torch_function_stack()


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return a == b
