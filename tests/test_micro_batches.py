"""Micro-batches: what is shared between them, and what the result does not depend on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

SHARING = ["sam:rho=0.3", "asam:rho=0.3", "delta_sam:rho=0.3,weights=norms", "delta_sam:rho=0.3,weights=slopes"]


def make() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)).double()
    return model, torch.randn(16, 3).double(), torch.randint(4, (16,))


def closures(model: nn.Module, x: Tensor, y: Tensor, count: int) -> list[Callable[[], Tensor]]:
    parts = zip(x.chunk(count), y.chunk(count), strict=True)
    return [lambda a=a, b=b: F.cross_entropy(model(a), b, reduction="none") / count for a, b in parts]


def weights_after(spec: str, count: int, *, together: bool, steps: int = 3) -> Tensor:
    model, x, y = make()
    method = deltasam.make_method(spec, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        parts = closures(model, x, y, count)
        for given in [parts] if together else parts:
            method.backward(given)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("spec", ["erm", "per_instance_sam:rho=0.3", "per_instance_sam:rho=0.3,m=4"])
def test_one_batch_two_halves_or_four_quarters_are_the_same(spec: str, together: bool) -> None:
    whole = weights_after(spec, 1, together=False)
    for count in (2, 4):
        assert (weights_after(spec, count, together=together) - whole).norm() / whole.norm() < 1e-10


@pytest.mark.parametrize("share", ["rank", "global"])
@pytest.mark.parametrize("spec", ["sam:rho=0.3", "asam:rho=0.3"])
def test_a_shared_ascent_does_not_depend_on_how_the_batch_is_cut(spec: str, share: str) -> None:
    whole = weights_after(spec, 1, together=False)
    for count in (2, 4):
        cut = weights_after(f"{spec},share={share}", count, together=True)
        assert (cut - whole).norm() / whole.norm() < 1e-10


@pytest.mark.parametrize("spec", SHARING)
def test_micro_batches_with_ascents_of_their_own(spec: str) -> None:
    """By default the result is the sum of independent steps, and differs from one for the whole batch."""
    whole, cut = weights_after(spec, 1, together=False), weights_after(spec, 4, together=False)
    assert (cut - whole).norm() / whole.norm() > 1e-4
    assert torch.equal(weights_after(spec, 4, together=True), cut)


@pytest.mark.parametrize("spec", ["delta_sam:rho=0.3,weights=norms"])
def test_a_shared_reweighted_ascent_equals_its_equation(spec: str) -> None:
    model, x, y = make()
    deltasam.make_method(f"{spec},share=rank", model).backward(closures(model, x, y, 4))
    ascent = dict.fromkeys((n for n, _ in model.named_parameters()), 0.0)
    for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
        losses, w = reference.losses_function(model, lambda m, a=a, b=b: F.cross_entropy(m(a), b, reduction="none"))
        slopes = torch.stack([reference.norm(reference.gradient(losses(w)[i], w)) for i in range(4)])
        p = slopes**0.5
        p = torch.minimum(p / p.mean(), torch.tensor(4.0).double())
        for n, g in reference.gradient((p / p.mean() * losses(w)).mean(), w).items():
            ascent[n] = ascent[n] + g
    losses, w = reference.losses_function(model, lambda m: F.cross_entropy(m(x), y, reduction="none"))
    expected = reference.erm(losses, reference.moved(w, ascent, reference.step(0.3, ascent)))
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["erm", *SHARING, "per_instance_sam:rho=0.3", "sam:rho=0.3,share=rank"])
def test_the_step_tells_of_all_micro_batches(spec: str) -> None:
    model, x, y = make()
    plain = F.cross_entropy(model(x), y)
    step = deltasam.make_method(spec, model).backward(closures(model, x, y, 4))
    torch.testing.assert_close(step.loss, plain.detach())
    for name, value in step.metrics.items():
        assert value.shape == ((16,) if name in ("weights", "group_grad_norms", "example_norms") else ())
    if "perturbed_loss" in step.metrics:
        assert step.metrics["perturbed_loss"] > step.loss
        assert float(step.metrics["radius_ratio"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("spec", [*SHARING, "sam:rho=0.3,share=rank", "per_instance_sam:rho=0.3"])
def test_dropout_buffers_and_random_state_with_a_shared_ascent(spec: str) -> None:
    """Every micro-batch finds its own masks again; the random state advances as in plain training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    model.register_buffer("calls", torch.zeros(()))
    x, y = torch.randn(8, 3).double(), torch.randint(4, (8,))
    masks: list[Tensor] = []

    def closure(rows: slice) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.calls += 1
            hidden = model[1](model[0](x[rows]))
            masks.append((hidden != 0).detach())
            return F.cross_entropy(model[2](hidden), y[rows], reduction="none") / 2

        return run

    torch.manual_seed(5)
    closure(slice(0, 4))(), closure(slice(4, 8))()
    drawn, state = masks[:2], torch.get_rng_state()
    masks.clear(), model.calls.zero_()
    torch.manual_seed(5)
    deltasam.make_method(spec, model).backward([closure(slice(0, 4)), closure(slice(4, 8))])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 2
    for mask in masks:
        assert any(torch.equal(mask, known) for known in drawn)
    # As many of each; the first micro-batch has more where it is checked.
    of_each = [sum(torch.equal(mask, known) for mask in masks) for known in drawn]
    assert of_each[0] >= of_each[1] >= 2
    assert sum(of_each) == len(masks)


def test_after_an_error_in_a_later_micro_batch_nothing_has_happened() -> None:
    model, x, y = make()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def broken() -> Tensor:
        torch.rand(3)
        raise OSError("the data is gone")

    for share in ("micro-batch", "rank", "global"):
        with pytest.raises(OSError, match="the data is gone"):
            deltasam.SAM(model, rho=0.3, share=share).backward([*closures(model, x, y, 2), broken])
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_closure_is_an_error() -> None:
    with pytest.raises(ValueError, match="no closure"):
        deltasam.ERM(nn.Linear(1, 1)).backward([])
