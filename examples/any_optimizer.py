"""Clipping, a scheduler, and every optimizer of ``torch.optim``, each in its plain, foreach and fused form.

What one sees: a method fills ``.grad`` and nothing else, so the weights are those of a loop in which the gradient
comes straight from the equation. The optimizers are found by looking. Left out are LBFGS, whose ``step`` needs a
closure of its own, and SparseAdam, which takes sparse gradients only. Muon takes matrices only, so the model has no
biases.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
NEED_SOMETHING_ELSE = {torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam}


def train(optimizer_of: Callable, fill: Callable[[nn.Module], None]) -> Tensor:
    """The weights after 4 steps; ``fill`` fills ``.grad``."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()
    optimizer = optimizer_of(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for _ in range(4):
        fill(model)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def with_deltasam(model: nn.Module) -> None:
    deltasam.SAM(model, rho=0.1).backward(lambda: F.cross_entropy(model(X), Y, reduction="none"))


def by_hand(model: nn.Module) -> None:
    losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(X), Y, reduction="none"))
    for p, g in zip(model.parameters(), reference.sam(losses, w, rho=0.1).values(), strict=True):
        p.grad = g


def forms(optimizer: type) -> list[dict[str, bool]]:
    """Its constructor's arguments: none, and each implementation it has."""
    has = inspect.signature(optimizer).parameters
    return [{}, *({form: True} for form in ("foreach", "fused") if form in has)]


if __name__ == "__main__":
    found = [o for o in vars(torch.optim).values() if inspect.isclass(o) and issubclass(o, torch.optim.Optimizer)]
    for optimizer in sorted(set(found) - NEED_SOMETHING_ELSE, key=lambda o: o.__name__):
        for form in forms(optimizer):
            make = partial(optimizer, **form)
            weights, expected = train(make, with_deltasam), train(make, by_hand)
            error = float((weights - expected).norm())
            print(f"{optimizer.__name__:10} {' '.join(form):8} {error:.0e}")
            assert error < 1e-10
