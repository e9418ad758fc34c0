"""Convolutions: products of patches where there are few places, a kernel for each example where there are many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam.core import dropout_masks
from per_instance import assert_exact

LAYERS = {
    "few places": (lambda: nn.Conv2d(16, 24, 3, 4, 1), "convolution"),
    "uneven": (lambda: nn.Conv2d(16, 24, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2)), "convolution"),
    "no bias": (lambda: nn.Conv2d(16, 24, 3, 3, bias=False), "convolution"),
    "many places": (lambda: nn.Conv2d(16, 8, 1), "copies"),
    "groups": (lambda: nn.Conv2d(16, 24, 3, 2, groups=4), "copies"),
    "same": (lambda: nn.Conv2d(16, 24, 3, padding="same"), "copies"),
}


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(2, 16, 1), layer
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.first(x)))).flatten(1))


@pytest.mark.parametrize("name", LAYERS)
def test_is_exact(name: str) -> None:
    make, rule = LAYERS[name]
    model = Net(make())
    x, y = torch.randn(4, 2, 6, 7), torch.randint(0, 3, (4,))
    model(x)
    model.double()
    assert_exact(model, lambda call: F.cross_entropy(call(x.double()), y, reduction="none"), ms=(1, 2, 4))
    method = deltasam.PerInstanceSAM(model)
    method.backward(lambda: F.cross_entropy(model(x.double()), y, reduction="none"))
    assert {row.rule for row in method.coverage() if row.parameter.startswith("layer.")} == {rule}


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_after_it_sees_the_same_masks_where_none_are_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where masks are drawn anew from the same random state: in the order of the memory."""
    make, _ = LAYERS[name]
    model = Net(nn.Sequential(make(), nn.Dropout(0.3)))
    x, y = torch.randn(4, 2, 6, 7), torch.randint(0, 3, (4,))
    model(x)
    gradients = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(dropout_masks, "is_compiled", lambda modules: True)
        torch.manual_seed(0)
        model.zero_grad()
        deltasam.PerInstanceSAM(model).backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for with_store, without in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_store)
