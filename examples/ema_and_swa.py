"""Averages of the weights: EMA and SWA from ``torch.optim.swa_utils``.

What one sees: the averages are those of a loop by hand, since a perturbed weight never outlives ``backward``. Nor do
BatchNorm statistics count a batch twice, and ``update_bn`` works as ever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(32, 4, dtype=torch.float64), torch.randint(3, (32,))
LOADER = list(zip(X.split(8), Y.split(8), strict=True))
Fill = Callable[[nn.Module, Tensor, Tensor], None]


def with_deltasam(model: nn.Module, x: Tensor, y: Tensor) -> None:
    deltasam.SAM(model, rho=0.1).backward(lambda: F.cross_entropy(model(x), y))


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> None:
    losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(x), y, reduction="none"))
    gradient = reference.sam(losses, w, rho=0.1)
    model(x)  # the statistics of one forward at the weights as they are
    for name, p in model.named_parameters():
        p.grad = gradient[name]


def train(fill: Fill) -> list[dict[str, Tensor]]:
    """The model, its moving average, and the mean of its weights with BatchNorm statistics of its own."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    ema, swa = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True), AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(3):
        for x, y in LOADER:
            fill(model, x, y)
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(model)
        swa.update_parameters(model)
    update_bn(LOADER, swa)
    return [copy.deepcopy(m.state_dict()) for m in (model, ema, swa)]


if __name__ == "__main__":
    names = ("model", "EMA", "SWA")
    for name, ours, expected in zip(names, train(with_deltasam), train(by_hand), strict=True):
        error = max(float((ours[k] - expected[k]).abs().max()) for k in expected)
        print(f"{name}: weights and statistics within {error:.0e} of the loop by hand")
        assert error < 1e-10
