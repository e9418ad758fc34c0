"""Weights in bfloat16, and what is left of a perturbation.

What one sees: a bfloat16 has 8 bits, so ``sam`` cannot move a weight by less than a quarter of a per cent of itself:
``radius_ratio`` says how far the weights really went over rho, far from 1 for a small rho. ``per_instance_sam`` moves
no weight. It adds to the outputs of layers what the perturbed weights would have added, so its gradient is nearer to
that of the same weights in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(16, 32).bfloat16(), torch.randint(3, (16,))
MODEL = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 3)).bfloat16()


def closure() -> Tensor:
    return F.cross_entropy(MODEL(X).float(), Y, reduction="none")


def sharpness_part(name: str, rho: float, **settings: float) -> tuple[deltasam.Step, float]:
    """A step, and the cosine of (its gradient - the plain one) with the same in float32, by the equation."""
    step, gradient = filled(deltasam.make_method(f"{name}:rho={rho}", MODEL))
    plain = filled(deltasam.ERM(MODEL))[1]
    wide = copy.deepcopy(MODEL).float()
    losses, w = reference.losses_function(wide, lambda m: F.cross_entropy(m(X.float()), Y, reduction="none"))
    exact = flat(getattr(reference, name)(losses, w, rho=rho, **settings).values())
    exact_plain = flat(reference.erm(losses, w).values())
    return step, float(F.cosine_similarity(gradient - plain, exact - exact_plain, dim=0))


def filled(method: deltasam.Method) -> tuple[deltasam.Step, Tensor]:
    MODEL.zero_grad()
    return method.backward(closure), flat(p.grad for p in MODEL.parameters())


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().float().flatten() for t in tensors])


if __name__ == "__main__":
    before = [p.detach().clone() for p in MODEL.parameters()]
    for rho in (0.001, 0.005, 0.05):
        (sam, sam_cosine), (own, own_cosine) = sharpness_part("sam", rho), sharpness_part("per_instance_sam", rho, m=1)
        moved, added = (float(step.metrics["radius_ratio"]) for step in (sam, own))
        print(f"rho {rho}: sam moved {moved:.2f} rho, its sharpness part has a cosine of {sam_cosine:.2f}")
        print(f"           per_instance_sam {added:.2f}, {own_cosine:.2f}")
        assert abs(added - 1) < 1e-6
        assert rho > 0.001 or (abs(moved - 1) > 0.1 and own_cosine > sam_cosine + 0.1)
    assert all(torch.equal(p, b) for p, b in zip(MODEL.parameters(), before, strict=True))
