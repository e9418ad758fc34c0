"""Schedule-free AdamW, which swaps two sets of weights in ``optimizer.train()`` and ``optimizer.eval()``.

What one sees: the weights of both modes are those of a loop by hand. The perturbation is around the weights that the
model has in ``backward``, those of ``train()``.
"""

from __future__ import annotations

from collections.abc import Callable

import schedulefree
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))


def with_deltasam(model: nn.Module) -> None:
    deltasam.PerInstanceSAM(model, rho=0.1).backward(lambda: F.cross_entropy(model(X), Y))


def by_hand(model: nn.Module) -> None:
    losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(X), Y, reduction="none"))
    for p, g in zip(model.parameters(), reference.per_instance_sam(losses, w, rho=0.1, m=1).values(), strict=True):
        p.grad = g


def train(fill: Callable[[nn.Module], None]) -> tuple[Tensor, Tensor]:
    """The weights to train with, and those to evaluate with."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.05, warmup_steps=2)
    optimizer.train()
    for _ in range(6):
        fill(model)
        optimizer.step()
        optimizer.zero_grad()
    training = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer.eval()
    return training, nn.utils.parameters_to_vector(model.parameters()).detach().clone()


if __name__ == "__main__":
    (training, evaluation), expected = train(with_deltasam), train(by_hand)
    print(f"train(): {float((training - expected[0]).norm()):.0e} from the loop by hand")
    print(f"eval():  {float((evaluation - expected[1]).norm()):.0e} from the loop by hand")
    assert (training - expected[0]).norm() < 1e-10
    assert (evaluation - expected[1]).norm() < 1e-10
    assert (training - evaluation).norm() > 1e-3
