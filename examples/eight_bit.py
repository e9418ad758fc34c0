"""Adam with 8-bit moments from bitsandbytes.

What one sees: the optimizer keeps its moments in bytes, and the weights are within rounding those of a loop by hand
with the same optimizer. Where bitsandbytes has no code for this machine's devices, the example says so and does
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import bitsandbytes
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(16, 64), torch.randint(3, (16,))


def with_deltasam(model: nn.Module) -> None:
    deltasam.SAM(model, rho=0.1).backward(lambda: F.cross_entropy(model(X), Y))


def by_hand(model: nn.Module) -> None:
    losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(X), Y, reduction="none"))
    for p, g in zip(model.parameters(), reference.sam(losses, w, rho=0.1).values(), strict=True):
        p.grad = g


def train(fill: Callable[[nn.Module], None]) -> tuple[Tensor, set[torch.dtype]]:
    """The weights after 5 steps, and the types of the moments."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 3))
    optimizer = bitsandbytes.optim.Adam8bit(model.parameters(), lr=0.01, min_8bit_size=1024)
    for _ in range(5):
        fill(model)
        optimizer.step()
        optimizer.zero_grad()
    moments = {state["state1"].dtype for state in optimizer.state.values()}
    return nn.utils.parameters_to_vector(model.parameters()).detach(), moments


if __name__ == "__main__":
    try:
        expected, _ = train(by_hand)
    except (RuntimeError, NotImplementedError) as reason:
        print(f"skipped: bitsandbytes {bitsandbytes.__version__} has no 8-bit Adam for this machine: {reason}")
    else:
        weights, moments = train(with_deltasam)
        print(f"{float((weights - expected).abs().max()):.0e} from the loop by hand; moments in {moments}")
        assert torch.uint8 in moments
        # A moment may fall on the other side of a rounding; one step moves a weight by about the learning rate, 0.01.
        assert (weights - expected).abs().max() < 1e-3
