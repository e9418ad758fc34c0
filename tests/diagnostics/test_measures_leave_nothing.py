"""After a measure, or an error anywhere in it, the model and all generators are what they were, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
from counting import Counting
from deltasam.diagnostics import (
    after_noise,
    after_pruning,
    after_rounding,
    average_sharpness,
    example_geometry,
    forgetting,
    hessian_spectrum,
    sharpness,
)
from per_instance import everything, same


def total_loss(closures: Any) -> Callable[[], dict[str, float]]:
    return lambda: {"loss": sum(float(closure().sum()) for closure in closures)}


def forgotten(model: nn.Module, closures: Any) -> Any:
    evaluate = total_loss(closures)
    adamw = lambda params: torch.optim.AdamW(params, lr=0.1)  # noqa: E731
    return forgetting(model, closures, evaluate, lambda: evaluate()["loss"], adamw, steps=3, every=2)


Measure = Callable[[nn.Module, Any], Any]
MEASURES: dict[str, Measure] = {
    "sharpness": sharpness,
    "sharpness of each example": lambda m, c: sharpness(m, c, m=1),
    "adaptive sharpness of each example": lambda m, c: sharpness(m, c, m=1, adaptive=True),
    "sharpness in steps": lambda m, c: sharpness(m, c, m=8, steps=2, adaptive=True),
    "average sharpness": lambda m, c: average_sharpness(m, c, samples=2, sigma=0.1),
    "average adaptive sharpness": lambda m, c: average_sharpness(m, c, samples=2, sigma=0.1, adaptive=True),
    "rounding": lambda m, c: after_rounding(m, total_loss(c)),
    "pruning": lambda m, c: after_pruning(m, total_loss(c), within="model"),
    "noise": lambda m, c: after_noise(m, total_loss(c), draws=2),
    "forgetting": forgotten,
    "examples": example_geometry,
    "hessian": lambda m, c: hessian_spectrum(m, c, k=1, tolerance=0.1, trace_samples=2),
}
RANDOM = ("hessian", "noise", "pruning")  # the last has its smallest weights among all
every = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())


@pytest.fixture
def model() -> nn.Module:
    """In training mode but for a part, with half a step's gradients."""
    torch.manual_seed(1)
    model = Counting().double().train()
    model.frozen.eval()
    closures_of(model)[0]().sum().backward()
    model.first.bias.grad = None
    model.frozen.weight.grad = torch.ones_like(model.frozen.weight)
    return model


def closures_of(model: nn.Module) -> list[Callable[[], Tensor]]:
    """Two batches of different size, whose losses draw from every generator."""
    generator = torch.Generator().manual_seed(0)

    def closure(n: int) -> Callable[[], Tensor]:
        x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (n,), generator=generator)
        return lambda: F.cross_entropy(model(x), y, reduction="none") * (1 + random.random()) * (1 + np.random.random())

    return [closure(6), closure(4)]


def state(model: nn.Module) -> list[Any]:
    return [
        everything(model),
        [id(p.grad) for p in model.parameters()],
        [m.training for m in model.modules()],
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.is_grad_enabled(),
        [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()],
    ]


@every
def test_puts_everything_back(measure: Measure, model: nn.Module) -> None:
    before = state(model)
    measure(model, closures_of(model))
    assert same(state(model), before)


class Interrupted(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


@every
def test_puts_everything_back_after_an_exception(measure: Measure, model: nn.Module) -> None:
    before = state(model)
    calls: list[int] = []

    def counted(closure: Callable[[], Tensor], failing: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            losses = closure()
            calls.append(0)
            if len(calls) > failing:
                raise Interrupted
            return losses

        return run

    measure(model, [counted(c, 10**9) for c in closures_of(model)])
    total = len(calls)
    assert total >= 5
    for failing in sorted({*range(min(total, 12)), *range(0, total, 7), total - 1}):
        calls.clear()
        with pytest.raises(Interrupted):
            measure(model, [counted(c, failing) for c in closures_of(model)])
        assert same(state(model), before)


@every
def test_is_the_same_every_time(measure: Measure, model: nn.Module) -> None:
    """Dropout masks follow from the random state; .grad and what was measured before do not count."""
    first = measure(model, closures_of(model))
    model.zero_grad()
    assert measure(model, closures_of(model)) == first
    torch.manual_seed(99)
    assert measure(model, closures_of(model)) != first


@every
def test_without_dropout_the_random_state_does_not_count(measure: Measure) -> None:
    case = cases.make("mlp")
    case.model.eval()
    first = measure(case.model, [case.closure])
    torch.manual_seed(99)
    assert measure(case.model, [case.closure]) == first


@pytest.mark.parametrize("name", [name for name in MEASURES if "average" not in name and name not in RANDOM])
def test_an_unused_parameter_changes_nothing(name: str, model: nn.Module) -> None:
    """Where no random vector is drawn for it."""
    unused = nn.Linear(2, 2).double()
    without = MEASURES[name](model, closures_of(model))
    model.unused = unused
    assert MEASURES[name](model, closures_of(model)) == without
    assert model.unused.weight.grad is None
