"""Schedules of the radius: which steps are perturbed, and what they cost.

What one sees: ``@last=0.3`` perturbs the last 3 of 10 steps, ``@every=2`` every other one, ``@warmup=4`` lets the
radius grow; a step that is not perturbed costs one forward instead of two (the first that is takes one more, in which
the closure must repeat itself). The weights are those of a loop by hand
that takes each step's radius from a list. Schedules count the steps of the optimizer, so they must be told which:
``follow``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

STEPS = 10
RADII = {
    "@last=0.3": [0] * 7 + [0.1] * 3,
    "@every=2": [0.1, 0] * 5,
    "@warmup=4": [0, 0.025, 0.05, 0.075] + [0.1] * 6,
    "@warmup=4@every=2": [0, 0, 0.05, 0] + [0.1, 0] * 3,
}
torch.manual_seed(0)
X, Y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(spec: str) -> tuple[Tensor, list[int]]:
    """The weights after all steps, and the number of forwards in each."""
    model, optimizer = make()
    method = deltasam.make_method(spec, model)
    method.follow(optimizer, total_steps=STEPS)
    forwards = [0] * STEPS
    for step in range(STEPS):

        def closure(step: int = step) -> Tensor:
            forwards[step] += 1
            return F.cross_entropy(model(X), Y)

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach(), forwards


def by_hand(radii: list[float]) -> Tensor:
    model, optimizer = make()
    for rho in radii:
        losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(X), Y, reduction="none"))
        for p, g in zip(model.parameters(), reference.sam(losses, w, rho=rho).values(), strict=True):
            p.grad = g
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


if __name__ == "__main__":
    for schedule, radii in RADII.items():
        weights, forwards = train(f"sam:rho=0.1{schedule}")
        print(f"sam:rho=0.1{schedule:18} forwards per step {forwards}, {sum(forwards)} instead of {2 * STEPS}")
        expected = [2 if rho else 1 for rho in radii]
        expected[next(i for i, rho in enumerate(radii) if rho)] += (
            1  # the first of them: does the closure repeat itself?
        )
        assert forwards == expected
        assert (weights - by_hand(radii)).norm() < 1e-10
