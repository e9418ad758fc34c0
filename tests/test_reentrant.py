"""Reentrant checkpoints would hide parameters from the ascent: every method with a second pass says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deltasam


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.table, self.reentrant = nn.Embedding(9, 4), reentrant
        self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.inside, self.table(x), use_reentrant=self.reentrant)
        return self.head(torch.tanh(hidden).mean(1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", deltasam.method_names())
def test_reentrant_checkpoints(name: str, reentrant: bool) -> None:
    model, x, y = Checkpointed(reentrant=reentrant), torch.randint(9, (4, 3)), torch.tensor([0, 1, 0, 1])
    method = deltasam.make_method(name, model)
    method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    if reentrant and name != "erm":
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
        assert all(p.grad is None for p in model.parameters())
    else:
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
        assert model.inside.weight.grad.abs().sum() > 0
