"""A closure that does not do the same each time is refused by methods that no other check holds to it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

WEIGHTED = ["delta_sam:weights=slopes", "delta_sam:weights=curvature", "rw_sam:weights=slopes"]
METHODS = ["sam", "asam", "friendly_sam", *WEIGHTED]
Losses = Callable[[nn.Module], Tensor]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.randint(0, 3, (6,), generator=generator)


def counting() -> Losses:
    """State in a Python attribute: what it computes hangs on how often it was called."""
    calls, (x, y) = itertools.count(), batch()
    return lambda model: F.cross_entropy(model(x + next(calls) * x.square()), y, reduction="none")


def fresh_data() -> Losses:
    """A batch of its own for each call: the commonest mistake with a closure."""
    batches, (_, y) = iter(torch.randn(99, 6, 4)), batch()
    return lambda model: F.cross_entropy(model(next(batches)), y, reduction="none")


def noise_of_its_own() -> Losses:
    """A generator that nobody can put back."""
    generator, (x, y) = torch.Generator().manual_seed(1), batch()
    return lambda model: F.cross_entropy(model(x + torch.randn(x.shape, generator=generator)), y, reduction="none")


def noise() -> Losses:
    """Every generator that is put back, and a count that changes nothing."""
    calls, (x, y) = itertools.count(), batch()

    def losses(model: nn.Module) -> Tensor:
        next(calls)
        return F.cross_entropy(model(F.dropout(x, 0.5) * random.random()), y, reduction="none")

    return losses


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("make", [counting, fresh_data, noise_of_its_own])
def test_what_changes_is_refused(make: Callable[[], Losses], spec: str) -> None:
    model, losses = nn.Linear(4, 3), make()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="the closure gives another result when it is run again"):
        deltasam.make_method(spec, model).backward(lambda: losses(model))
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("spec", METHODS)
def test_what_repeats_is_not(spec: str) -> None:
    model, losses = nn.Linear(4, 3), noise()
    deltasam.make_method(spec, model).backward(lambda: losses(model))
    assert model.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", METHODS)
def test_state_that_later_passes_leave_alone_is_no_reason(spec: str) -> None:
    """The way out that the error names."""
    (x, y), model = batch(), nn.Linear(4, 3)
    calls = 0

    def losses() -> Tensor:
        nonlocal calls
        calls += not deltasam.in_later_pass()
        return F.cross_entropy(model(x * calls), y, reduction="none")

    method = deltasam.make_method(spec, model)
    for _ in range(2):
        method.backward(losses)
    assert calls == 2


def test_it_is_looked_for_at_the_tenth_step_too() -> None:
    (x, y), model = batch(), nn.Linear(4, 3)
    method, calls = deltasam.SAM(model), itertools.count()

    def losses() -> Tensor:
        return F.cross_entropy(model(x) * (1 if next(calls) < 8 else next(calls)), y)

    for _ in range(9):
        method.backward(losses)
    with pytest.raises(RuntimeError, match="the closure gives another result"):
        method.backward(losses)


@pytest.mark.parametrize("make", [counting, fresh_data, noise_of_its_own])
def test_one_example_after_the_other_is_held_to_it(make: Callable[[], Losses]) -> None:
    """In every step: it runs at the weights as they are anyway."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    (x, y), losses = batch(), make()
    method = deltasam.PerInstanceSAM(model, unsupported="loop")
    with pytest.warns(RuntimeWarning, match="one example at a time"):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
    with pytest.raises(RuntimeError, match="the closure gives another result when it is run again"):
        method.backward(lambda: losses(model))
