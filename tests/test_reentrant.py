"""Reentrant checkpoints run in a plain backward only: every method that takes no other is exact, the rest say so."""

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


# They take gradients of tensors between the loss and the parameters.
REFUSING = ["per_instance_sam", "delta_sam", "smart", "functional_sam", "per_instance_functional_sam"]
REFUSING += ["preconditioned_functional_sam"]


def filled(spec: str, *, reentrant: bool) -> Checkpointed:
    torch.manual_seed(0)
    model, x, y = Checkpointed(reentrant=reentrant), torch.randint(9, (4, 3)), torch.tensor([0, 1, 0, 1])
    method = deltasam.make_method(spec, model)
    method.follow(torch.optim.Adam(model.parameters(), lr=0.1))
    try:
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
    except RuntimeError:
        assert all(p.grad is None for p in model.parameters())
        raise
    return model


@pytest.mark.parametrize("spec", [*deltasam.method_names(), "delta_sam:weights=slopes", "smart:alpha=0"])
def test_reentrant_checkpoints(spec: str) -> None:
    expected = filled(spec, reentrant=False)
    assert expected.inside.weight.grad.abs().sum() > 0
    if spec in REFUSING:
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            filled(spec, reentrant=True)
        return
    for p, q in zip(filled(spec, reentrant=True).parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
