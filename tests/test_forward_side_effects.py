"""Models whose forward pass changes something: later passes do it again, or it is refused."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam.core import restore as guards
from deltasam.diagnostics import loss_slice, sharpness

X, Y = torch.randn(4, 5, dtype=torch.float64), torch.randint(0, 3, (4,))
MOVING = ["sam", "asam", "delta_sam:weights=slopes", "friendly_sam", "rw_sam", "per_instance_sam"]


def closure_of(model: nn.Module) -> Any:
    return lambda: F.cross_entropy(model(X), Y, reduction="none")


class MaxNorm(nn.Linear):
    """Brings its weight back to norm 1 at each call, in another memory."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 1.0)
        return super().forward(x)


@pytest.fixture
def renormed() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), MaxNorm(6, 3)).double()
    model(X)
    return model


@pytest.mark.parametrize("spec", MOVING)
def test_weights_in_another_memory_come_back(renormed: nn.Module, spec: str) -> None:
    model = copy.deepcopy(renormed)
    watches = spec.startswith("per_instance")  # copies for each example cannot follow what is put in their place
    with pytest.raises(deltasam.NotCoveredError, match=r"2\.weight: it is put") if watches else nullcontext():
        deltasam.make_method(spec, model).backward(closure_of(model))
    torch.testing.assert_close(model.state_dict(), renormed.state_dict(), rtol=0, atol=1e-15)


def test_weights_in_another_memory_come_back_after_measures(renormed: nn.Module) -> None:
    model = copy.deepcopy(renormed)
    sharpness(model, [closure_of(model)], rho=0.5)
    loss_slice(model, [closure_of(model)], points=3)
    torch.testing.assert_close(model.state_dict(), renormed.state_dict(), rtol=0, atol=1e-15)


class Momentum(nn.Module):
    """A frozen encoder that follows the trained one (MoCo, BYOL)."""

    def __init__(self, *, guarded: bool) -> None:
        super().__init__()
        self.guarded = guarded
        self.encoder, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.key = nn.Linear(5, 4).requires_grad_(False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if not (self.guarded and deltasam.in_later_pass()):
                for ours, theirs in zip(self.encoder.parameters(), self.key.parameters(), strict=True):
                    theirs.mul_(0.9).add_(ours, alpha=0.1)
            key = self.key(x)
        return self.head(torch.tanh(self.encoder(x) * key))


@pytest.mark.parametrize("spec", ["sam", "r_drop", "delta_sam:weights=slopes"])
def test_frozen_parameters_are_not_written_twice(spec: str) -> None:
    model = Momentum(guarded=False)
    with pytest.raises(RuntimeError, match=r"writes into parameters \(key.weight, key.bias\)"):
        deltasam.make_method(spec, model).backward(closure_of(model))


@pytest.mark.parametrize("spec", ["sam:rho=0", "sam", "r_drop"])
def test_frozen_parameters_are_written_once_where_the_model_takes_care(spec: str) -> None:
    plain = Momentum(guarded=True)
    model = copy.deepcopy(plain)
    closure_of(plain)().mean().backward()
    deltasam.make_method(spec, model).backward(closure_of(model))
    assert torch.equal(plain.key.weight, model.key.weight)
    if spec == "sam:rho=0":
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), model.parameters(), strict=True)
                   if p.requires_grad)  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    ["sam", "asam", "friendly_sam", "delta_sam:weights=slopes", "rw_sam:weights=slopes", "freelb", "r_drop",
     "per_instance_sam:unsupported=loop", "per_instance_sam:unsupported=skip"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["max_norm", "no_grad", "detach"])
def test_a_forward_that_constrains_weights_is_refused(kind: str, spec: str) -> None:
    """A later pass would begin with other weights than the first one; weights are left as a plain forward does."""

    class Constrained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 5, max_norm=1.0 if kind == "max_norm" else None)
            self.head = nn.Linear(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            if kind == "no_grad":
                with torch.no_grad():
                    self.head.weight.mul_(0.9)
            elif kind == "detach":
                self.head.weight.detach().mul_(0.9)
            return self.head(self.table(ids).mean(1))

    torch.manual_seed(0)
    ids, plain = torch.randint(0, 9, (4, 3)), Constrained()
    model = copy.deepcopy(plain)
    plain(ids)
    with pytest.raises(RuntimeError, match=r"writes into parameters|writes into its memory|max_norm writes into it"):
        deltasam.make_method(spec, model).backward(lambda: F.cross_entropy(model(ids), Y, reduction="none"))
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_frozen_parameters_that_were_made_for_inference() -> None:
    """PyTorch does not count writes into these."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.inference_mode():
        model[0] = nn.Linear(5, 4).double().requires_grad_(False)
    x = torch.tanh(torch.randn(4, 4, dtype=torch.float64))
    step = deltasam.SAM(model, rho=0.05).backward(lambda: F.cross_entropy(model[2](x), Y))
    assert step.metrics["radius_ratio"] == pytest.approx(1)


class Counted(nn.Module):
    """Its loss depends on how often it was called: annealing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3).double()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * float(self.calls)


def spectral(wrap: Any) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(5, 6)), nn.Tanh(), wrap(nn.Linear(6, 3))).double()


@pytest.mark.parametrize("spec", ["sam:rho=0", "asam:rho=0", "delta_sam:rho=0,weights=slopes"])
@pytest.mark.parametrize(
    "make",
    [
        Counted,
        lambda: spectral(nn.utils.spectral_norm),
        lambda: spectral(nn.utils.parametrizations.spectral_norm),
    ],
    ids=["counter", "spectral norm", "spectral norm by parametrization"],
)
def test_buffers_that_the_forward_reads_are_the_same_in_every_pass(make: Any, spec: str) -> None:
    plain = make()
    model = copy.deepcopy(plain)
    closure_of(plain)().mean().backward()
    deltasam.make_method(spec, model).backward(closure_of(model))
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for p, q in zip(plain.buffers(), model.buffers(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("spec", ["delta_sam:rho=0.1,weights=slopes", "delta_sam:rho=0.1"])
def test_buffers_that_every_forward_is_sent(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DDP sends them: where autograd counts that as a change (PyTorch 2.9), though the values are the same."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.linear = nn.Embedding(8, 1).double(), nn.Linear(5, 3).double()
            self.register_buffer("ids", torch.arange(8)[None])

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.tanh(x + self.positions(self.ids[:, :5])[..., 0]))

    plain = Positions()
    model = copy.deepcopy(plain)
    torch.manual_seed(0)
    deltasam.make_method(spec, plain).backward(closure_of(plain))
    monkeypatch.setattr(guards, "alone", lambda: False)

    def send(*_: Any) -> None:
        model.ids.copy_(model.ids.clone())

    model.register_forward_pre_hook(send)
    torch.manual_seed(0)
    deltasam.make_method(spec, model).backward(closure_of(model))
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_cache_that_has_grown_stays() -> None:
    """Its length is noted in an attribute: with the old cache, later passes would be those of another model."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.length = nn.Linear(5, 3).double(), 0
            self.register_buffer("factor", torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.length:
                self.length = len(x)
                self.register_buffer("factor", torch.full((), 3.0, dtype=torch.float64))
            return self.linear(x) * self.factor

    plain = Places()
    model = copy.deepcopy(plain)
    closure_of(plain)().mean().backward()
    deltasam.SAM(model, rho=0.0).backward(closure_of(model))
    assert torch.equal(plain.linear.weight.grad, model.linear.weight.grad)
    assert torch.equal(plain.factor, model.factor)


def test_an_optimizer_that_steps_in_the_backward_is_refused() -> None:
    """Its step would be undone, and training would do nothing without a word."""
    model = nn.Linear(5, 3).double()
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: torch.optim.SGD([p], lr=0.1).step())
    deltasam.ERM(model).backward(closure_of(model))
    assert not torch.equal(model.weight, before)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="step after backward"):
        deltasam.SAM(model, rho=0.05).backward(closure_of(model))
    assert torch.equal(model.weight, before)
