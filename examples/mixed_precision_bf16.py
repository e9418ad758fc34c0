"""bfloat16 by autocast: around ``backward`` or inside the closure.

What one sees: both train the same weights, bit by bit, and they are those of a SAM loop written by hand under
autocast. The loop by hand must also drop autocast's low-precision copies of the weights,
``torch.clear_autocast_cache``: its second pass would not see that the weights have moved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

RHO = 0.1
torch.manual_seed(0)
X, Y = torch.randn(8, 4), torch.randint(3, (8,))


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X).float(), Y)


def inside(model: nn.Module) -> None:
    def closure() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(model)

    deltasam.SAM(model, rho=RHO).backward(closure)


def around(model: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        deltasam.SAM(model, rho=RHO).backward(lambda: loss_of(model))


def by_hand(model: nn.Module, forget_copies: Callable[[], None] = torch.clear_autocast_cache) -> None:
    """The gradient, a step of length rho along it, the gradient there, and back."""
    params = list(model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ascent = torch.autograd.grad(loss_of(model), params)
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            torch._foreach_add_(params, ascent, alpha=float(RHO / torch.cat([g.flatten() for g in ascent]).norm()))
        forget_copies()
        loss_of(model).backward()
        with torch.no_grad():
            torch._foreach_copy_(params, before)


def train(fill: Callable[[nn.Module], None]) -> Tensor:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        fill(model)
        optimizer.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


if __name__ == "__main__":
    hand, careless = train(by_hand), train(lambda model: by_hand(model, lambda: None))
    print(f"around and inside: equal; from the loop by hand: {float((train(around) - hand).norm()):.0e}")
    print(f"a loop by hand that keeps autocast's copies is off by {float((careless - hand).norm()):.0e}")
    assert torch.equal(train(around), train(inside))
    assert (train(around) - hand).norm() < 1e-5 < (careless - hand).norm()
