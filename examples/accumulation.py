"""Gradient accumulation: 1 x 16, 2 x 8 and 4 x 4 examples.

What one sees: ``per_instance_sam`` trains the same weights however the batch is cut, since every example has a
perturbation of its own. ``sam`` does not: every micro-batch has its own perturbation, and a smaller batch another
one. With ``share=rank``, and all micro-batches of a step given in one call, it is that of the whole batch again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(spec: str, pieces: int, *, in_one_call: bool = False) -> Tensor:
    """The weights after 5 steps of ``pieces`` micro-batches each."""
    model, optimizer = make()
    method = deltasam.make_method(spec, model)
    closures = [
        lambda x=x, y=y: F.cross_entropy(model(x), y, reduction="none") / pieces  # divided, as always
        for x, y in zip(X.chunk(pieces), Y.chunk(pieces), strict=True)
    ]
    for _ in range(5):
        if in_one_call:
            method.backward(closures)
        else:
            for closure in closures:
                method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def by_hand(method: str, **settings: float) -> Tensor:
    """The same 5 steps on the whole batch, straight from the equation."""
    model, optimizer = make()
    for _ in range(5):
        losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(X), Y, reduction="none"))
        gradient = getattr(reference, method)(losses, w, rho=0.3, **settings)
        for name, p in model.named_parameters():
            p.grad = gradient[name]
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


if __name__ == "__main__":
    per_instance, sam = by_hand("per_instance_sam", m=1), by_hand("sam")
    for pieces in (1, 2, 4):
        errors = {
            "per_instance_sam": (train("per_instance_sam:rho=0.3", pieces) - per_instance).norm(),
            "sam": (train("sam:rho=0.3", pieces) - sam).norm(),
            "sam:share=rank": (train("sam:rho=0.3,share=rank", pieces, in_one_call=True) - sam).norm(),
        }
        print(f"{pieces} x {16 // pieces}, distance from the whole batch:", {k: f"{v:.0e}" for k, v in errors.items()})
        assert errors["per_instance_sam"] < 1e-10
        assert errors["sam:share=rank"] < 1e-10
        assert (errors["sam"] < 1e-10) == (pieces == 1)
