"""Plain steps on another task beside a loop by hand, and the curve that is read off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltasam.diagnostics import Forgetting, ForgettingPoint, forgetting, plot_forgetting


class Task:
    """Rows and classes of a task, and a model's loss and accuracy on them."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(12, 5, generator=generator)
        self.y = torch.randint(0, 3, (12,), generator=generator)

    def losses(self, model: nn.Module, rows: slice = slice(None)) -> Tensor:
        return F.cross_entropy(model(self.x[rows]), self.y[rows], reduction="none")

    def loss(self, model: nn.Module) -> float:
        return float(self.losses(model).detach().mean())


A, B = Task(1), Task(2)
ROWS = [slice(0, 4), slice(4, 12)]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Dropout(dropout), nn.Linear(9, 3)]
    model = nn.Sequential(*layers)
    model[4].bias.requires_grad_(False)
    return model


def measured(model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], **more: Any) -> Forgetting:
    closures = [lambda rows=rows: B.losses(model, rows) for rows in ROWS]
    return forgetting(model, closures, lambda: {"loss": A.loss(model)}, lambda: B.loss(model), optimizer, **more)


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_is_a_loop_by_hand(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    model = network().eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 100.0)  # no part of it
    found = measured(model, optimizer, steps=7, every=3)
    assert [p.step for p in found.points] == [0, 3, 6, 7]
    hand = copy.deepcopy(model)
    stepping = optimizer([p for p in hand.parameters() if p.requires_grad])
    expected = [(B.loss(hand), A.loss(hand))]
    for step in range(7):
        stepping.zero_grad()
        B.losses(hand, ROWS[step % 2]).mean().backward()
        stepping.step()
        if step in (2, 5, 6):
            expected.append((B.loss(hand), A.loss(hand)))
    assert [(p.loss, p.metrics["loss"]) for p in found.points] == pytest.approx(expected, rel=1e-6)
    assert found.points[-1].loss < found.points[0].loss


def test_measuring_more_often_changes_no_step() -> None:
    """In training mode, where measurements draw dropout masks and write into buffers too."""
    often, seldom = (measured(network(0.5).train(), sgd, steps=6, every=every) for every in (1, 6))
    assert often.points[-1] == seldom.points[-1]
    assert len(often.points) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("failing", [None, 0, 2])
def test_everything_is_put_back(dtype: torch.dtype, failing: int | None) -> None:
    model = network(0.5).train().to(dtype)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    kept, gradient = copy.deepcopy(model.state_dict()), model[0].weight.grad
    random_state, calls = torch.get_rng_state(), []

    def evaluate() -> dict[str, float]:
        if len(calls) == failing:
            raise KeyboardInterrupt
        calls.append(model[4].weight.clone())
        return {"x": 1.0}

    closures = [lambda: F.cross_entropy(model(B.x.to(dtype)), B.y)]

    def run() -> None:
        forgetting(model, closures, evaluate, lambda: float(closures[0]().detach()), sgd, steps=4, every=1)

    if failing is None:
        run()
        assert not torch.equal(calls[-1], calls[0])
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert model[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert model[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def curve(*points: tuple[float, float]) -> Forgetting:
    return Forgetting(tuple(ForgettingPoint(i, loss, {"accuracy": x}) for i, (loss, x) in enumerate(points)))


def test_is_read_off_at_a_loss() -> None:
    found = curve((1.0, 0.9), (0.6, 0.8), (0.7, 0.75), (0.2, 0.5))
    assert found.at_loss(1.0) == {"accuracy": 0.9}
    assert found.at_loss(0.8)["accuracy"] == pytest.approx(0.85)
    assert found.at_loss(0.65)["accuracy"] == pytest.approx(0.8125)  # where it is first so low
    assert found.at_loss(0.6)["accuracy"] == pytest.approx(0.8)
    assert found.at_loss(0.45)["accuracy"] == pytest.approx(0.625)
    assert found.at_loss(0.2)["accuracy"] == pytest.approx(0.5)
    for outside in (1.1, 0.1, float("nan")):
        with pytest.raises(ValueError, match=r"from 1 down to 0.2; give a loss between"):
            found.at_loss(outside)


def test_reading_and_plot() -> None:
    found = curve((1.0, 0.9), (0.2, 0.5))
    assert "from 1 to 0.2, and on task A accuracy from 0.9 to 0.5" in found.reading
    ax = plot_forgetting({"one": found, "two": curve((1.0, 0.8), (0.1, 0.7))})
    assert [list(line.get_xdata()) for line in ax.get_lines()] == [[1.0, 0.2], [1.0, 0.1]]
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[0.9, 0.5], [0.8, 0.7]]
    low, high = ax.get_xlim()
    assert low > high  # a falling loss goes to the right


def test_what_cannot_be_measured_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"forgetting\(steps=0\)"):
        measured(model, sgd, steps=0)
    with pytest.raises(ValueError, match="no closure"):
        forgetting(model, [], lambda: {"x": 1.0}, lambda: 1.0, sgd)
    with pytest.raises(ValueError, match="no trainable parameter"):
        measured(model.requires_grad_(False), sgd)
