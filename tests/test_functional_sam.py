"""Functional SAM: the loss must be made of the logits alone, and everything on its way acts once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 1, 2, 0, 1, 2])
NAMES = ["functional_sam", "per_instance_functional_sam"]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def filled(name: str, model: nn.Module, closure: Callable[[], object], **options: float) -> Tensor:
    model.zero_grad()
    deltasam.make_method(name + "".join(f":{k}={v}" for k, v in options.items()), model).backward(closure)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_a_hook_on_the_logits_acts_once() -> None:
    model = net()

    def closure() -> Tensor:
        logits = model(X)
        logits.register_hook(lambda g: 2 * g)
        return F.cross_entropy(logits, Y, reduction="none")

    nearly = filled("functional_sam", model, closure, rho=1e-9)
    torch.testing.assert_close(nearly, filled("erm", model, closure), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda model, logits: 0.1 * model[0].weight.square().sum(), "beside the logits"),
        (lambda model, logits: model[0](X).square().mean(), "beside the logits"),
        (lambda model, logits: 0.1 * logits.double().square().mean(), None),
    ],
    ids=["weights", "hidden states", "logits"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_term_beside_the_logits_is_refused(
    name: str, term: Callable[[nn.Module, Tensor], Tensor], message: str | None
) -> None:
    model = net()

    def closure() -> Tensor:
        logits = model(X)
        return F.cross_entropy(logits, Y) + term(model, logits)

    if message is None:
        filled(name, model, closure, rho=0.1)
        return
    with pytest.raises(ValueError, match=message):
        filled(name, model, closure, rho=0.1)


def test_logits_before_and_after_a_cast_are_refused() -> None:
    model, seen = net(), []
    model[2].register_forward_hook(lambda _m, _i, output: seen.append(output))

    class Upcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.float()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).double()

    outer = Upcast()
    with pytest.raises(ValueError, match="before and after a cast"):
        filled(
            "functional_sam", outer, lambda: F.cross_entropy(outer(X.float()), Y) + seen[-1].square().mean(), rho=0.1
        )


def test_a_leaf_whose_hook_runs_a_backward_is_refused() -> None:
    """A term through a detached copy, whose gradient a hook carries on."""
    model = net()

    def closure() -> Tensor:
        hidden = model[0](X)
        leaf = hidden.detach().requires_grad_()
        leaf.register_hook(hidden.backward)
        return F.cross_entropy(model(X), Y) + leaf.square().mean()

    with pytest.raises(ValueError, match="beside the logits"):
        filled("functional_sam", model, closure, rho=0.1)


def test_other_logits_than_those_of_the_loss_are_refused() -> None:
    model = net()

    def closure() -> deltasam.Output:
        return deltasam.Output(F.cross_entropy(model(X), Y), model(X))

    with pytest.raises(ValueError, match="beside the logits"):
        filled("functional_sam", model, closure, rho=0.1)
