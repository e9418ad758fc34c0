"""Gradient checkpointing: less memory, the same gradient.

What one sees: with ``use_reentrant=False`` every method fills bit by bit what it fills without checkpoints, dropout
included. The reentrant kind hides parameters from ``torch.autograd.grad``: an error, which says what to change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deltasam

torch.manual_seed(0)
X, Y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))


class Model(nn.Module):
    """A small net whose middle is run again in the backward instead of being kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.middle = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.calls = 0

    def forward(self, x: Tensor, reentrant: bool | None) -> Tensor:
        hidden = self.first(x)
        if reentrant is None:
            return self.last(self.counted(hidden))
        return self.last(checkpoint(self.counted, hidden, use_reentrant=reentrant))

    def counted(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.middle(x)


def gradient(name: str, reentrant: bool | None) -> tuple[Tensor, int]:
    """What a method fills in a second step, and how often the middle ran in it."""
    torch.manual_seed(1)
    model = Model().double()
    method = deltasam.make_method(name, model)
    method.follow(torch.optim.Adam(model.parameters()))
    for _ in range(2):
        model.zero_grad()
        model.calls = 0
        method.backward(lambda: F.cross_entropy(model(X, reentrant), Y, reduction="none"))
    return torch.cat([p.grad.flatten() for p in model.parameters()]), model.calls


def refusal(name: str) -> str:
    """The error where checkpoints are reentrant."""
    try:
        gradient(name, reentrant=True)
    except RuntimeError as error:
        return str(error)
    return "none"


if __name__ == "__main__":
    perturbing = [name for name, cls in deltasam.Method.registry.items() if "rho" in deltasam.hyperparameters(cls)]
    for name in ["erm", *perturbing]:
        (kept, calls), (again, more) = gradient(name, None), gradient(name, reentrant=False)
        print(f"{name:17} the same with and without checkpoints; the middle ran {more} times instead of {calls}")
        assert torch.equal(again, kept)
        assert more > calls
    for name in perturbing:
        message = refusal(name)
        print(f"{name:17} use_reentrant=True: {message.splitlines()[0][:80] or message}")
        assert message == "none" or "use_reentrant=False" in message
    assert "use_reentrant=False" in refusal("per_instance_sam")
