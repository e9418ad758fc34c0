"""Reentrant checkpoints would hide parameters from the ascent: every method with a second pass says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deltasam


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inside, self.head, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(checkpoint(self.inside, x, use_reentrant=self.reentrant)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", deltasam.method_names())
def test_reentrant_checkpoints(name: str, reentrant: bool) -> None:
    model, x = Checkpointed(reentrant=reentrant), torch.randn(4, 4, requires_grad=True)
    method = deltasam.make_method(name, model)
    if reentrant and name != "erm":
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            method.backward(lambda: model(x).square().mean(1))
        assert all(p.grad is None for p in model.parameters())
    else:
        method.backward(lambda: model(x).square().mean(1))
        assert model.inside.weight.grad.abs().sum() > 0
