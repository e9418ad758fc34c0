"""After a step, after an error anywhere in it, and after a thousand steps nothing is left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from per_instance import RHO, SEED, everything, same

N, D, C = 4, 5, 3


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, D), nn.LayerNorm(D), nn.Linear(D, C)
        self.dropout, self.scale = nn.Dropout(0.3), nn.Parameter(torch.ones(D))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.dropout(self.norm(self.embed(ids)) * self.scale).mean(1))


@pytest.fixture
def model() -> nn.Module:
    return Small().double()


def losses(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids, y = (torch.randint(0, k, shape, generator=generator) for k, shape in ((9, (N, 6)), (C, (N,))))
    return F.cross_entropy(model(ids), y, reduction="none")


def fail(*_: Any) -> None:
    raise KeyboardInterrupt


def before_the_forward(model: nn.Module) -> Tensor:
    fail()
    raise AssertionError


def after_the_forward(model: nn.Module) -> Tensor:
    losses(model)
    return before_the_forward(model)


def in_the_middle_of_the_forward(model: nn.Module) -> Tensor:
    handle = model.norm.register_forward_hook(fail)
    try:
        return losses(model)
    finally:
        handle.remove()


def in_the_backward(model: nn.Module) -> Tensor:
    result = losses(model)
    result.register_hook(fail)
    return result


def in_a_torch_function(model: nn.Module) -> Tensor:
    return losses(model).view(17)


def no_loss(model: nn.Module) -> Any:
    losses(model)


WHERE = [
    before_the_forward, after_the_forward, in_the_middle_of_the_forward, in_the_backward, in_a_torch_function, no_loss,
]  # fmt: skip


@pytest.mark.parametrize("where", WHERE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("checked", [False, True])
def test_an_error_leaves_nothing(model: nn.Module, where: Callable[..., Any], call: int, checked: bool) -> None:
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    if checked:
        method.backward(lambda: losses(model))
        model.zero_grad()
    before = everything(model)
    calls = iter(range(9))
    with pytest.raises((KeyboardInterrupt, RuntimeError, TypeError)):
        method.backward(lambda: where(model) if next(calls) >= call else losses(model))
    # What fails while it is watched is run unwatched, in case the watching was the cause.
    assert next(calls) == call + 1 + (where is in_a_torch_function and call == 0)
    model.zero_grad()
    assert same(everything(model), before)
    torch.manual_seed(SEED)  # and the next step is as if nothing had been
    step = method.backward(lambda: losses(model))
    torch.manual_seed(SEED)
    model.calls.zero_()
    again = deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: losses(model))
    assert same(step.metrics, again.metrics)


@pytest.mark.parametrize("where", WHERE, ids=lambda f: f.__name__)
def test_an_error_while_norms_are_computed_leaves_nothing(model: nn.Module, where: Callable[..., Any]) -> None:
    before = everything(model)
    with pytest.raises((KeyboardInterrupt, RuntimeError, TypeError)):
        deltasam.per_example_grad_norms(model, lambda: where(model))
    assert same(everything(model), before)


def test_norms_leave_nothing(model: nn.Module) -> None:
    before = everything(model)
    norms = deltasam.per_example_grad_norms(model, lambda: losses(model))
    assert norms.shape == (N,)
    assert not norms.requires_grad
    assert same(everything(model), before)


def test_norms_are_checked_once_for_a_model() -> None:
    """As in a method: what a model was checked for is known as long as there is the model."""
    model, other, forwards = Small().double(), Small().double(), []

    def calls(model: nn.Module) -> int:
        forwards.clear()
        deltasam.per_example_grad_norms(model, lambda: (forwards.append(0), losses(model))[1])
        return len(forwards)

    found = [calls(model) for _ in range(10)]
    assert found == [found[0], *[1] * 8, found[0]]
    assert found[0] > 1
    assert calls(other) == found[0]
    model.norm.requires_grad_(False)
    assert calls(model) > 1
    freed = weakref.ref(other)
    del other
    gc.collect()
    assert freed() is None


def test_a_step_leaves_nothing_but_the_gradient(model: nn.Module) -> None:
    before = everything(model)
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    method.backward(lambda: losses(model))
    model.zero_grad()
    model.calls.zero_()
    after = everything(model)
    assert same((*after[:3], after[4]), (*before[:3], before[4]))


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def test_a_thousand_steps_do_not_grow(model: nn.Module) -> None:
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    counts = []
    for number in range(1000):
        model.zero_grad()
        method.backward(lambda: losses(model))
        if number in (9, 999):
            counts.append(live_tensors())
    assert counts[0] == counts[1]
    assert len(pickle.dumps(method)) < 50_000


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("unsupported", ["error", "loop", "skip"])
def test_the_batch_dies_with_the_step(model: nn.Module, fails: bool, unsupported: str) -> None:
    """Without the help of the garbage collector, where all goes well: memory must be free for the next batch."""
    method = deltasam.PerInstanceSAM(model, rho=RHO, unsupported=unsupported)
    batch = [torch.randint(0, 9, (N, 6))]
    hidden: list[weakref.ref[Tensor]] = []
    handle = model.norm.register_forward_hook(lambda _, args, y: hidden.append(weakref.ref(y)))

    def closure() -> Tensor:
        result = model(batch[0]).square().mean(1)
        return result.view(17) if fails and len(hidden) == 2 else result

    gc.collect()
    gc.disable()
    try:
        if fails:
            with pytest.raises(RuntimeError):
                method.backward(closure)
            gc.collect()  # a traceback holds its frames
        else:
            method.backward(closure)
        ref = weakref.ref(batch.pop())
        assert ref() is None
        assert [h() for h in hidden if h() is not None] == []
    finally:
        gc.enable()
        handle.remove()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_method_goes_on(model: nn.Module, duplicate: Any) -> None:
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    method.backward(lambda: losses(model))
    twin = duplicate(method)
    for each in (method, twin):
        each.model.zero_grad()
        torch.manual_seed(SEED)
        each.backward(lambda: losses(each.model))  # noqa: B023
    for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_other_modes_of_the_user_go_on_working(model: nn.Module) -> None:
    seen: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    torch.manual_seed(SEED)
    plain = deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: losses(model))
    model.calls.zero_()
    with Watch():
        torch.manual_seed(SEED)
        step = deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: losses(model))
    assert "layer_norm" in seen
    assert same(step.metrics, plain.metrics)
