"""Slices beside closed forms, filter normalisation beside a loop by hand; everything put back; clear refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltasam.diagnostics import loss_path, loss_plane, loss_slice, plot_path, plot_plane, plot_slice
from deltasam.diagnostics.interpolation import barrier
from deltasam.diagnostics.landscape import filter_normalised


class Quadratic(nn.Module):
    """One weight matrix, one loss per row of it: ``L = mean_i a_i |w_i - c_i|² / 2``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.a, self.c = torch.rand(4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def forward(self, rows: slice) -> Tensor:
        return self.a[rows] * (self.weight[rows] - self.c[rows]).square().sum(1) / 2 + 0 * self.bias.sum()


class Net(nn.Module):
    """Dropout, a buffer that every forward changes, tied and frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(5, 5), nn.Linear(5, 5)
        self.again.weight = self.first.weight
        self.frozen, self.norm = nn.Linear(5, 5).requires_grad_(False), nn.BatchNorm1d(5)
        self.last, self.dropout = nn.Linear(5, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.again(self.norm(self.first(self.frozen(x)))))))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net().double().train()


def closures_of(model: nn.Module, sizes: tuple[int, ...] = (6, 3)) -> list[Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in sizes]
    return [lambda x=x, y=y: F.cross_entropy(model(x), y, reduction="none") for x, y in data]


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()


def assert_untouched(model: nn.Module, before: tuple[dict[str, Tensor], Tensor], gradients: list[Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert model.training


def with_gradients(model: nn.Module) -> list[Tensor]:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return [p.grad for p in model.parameters()]


def test_rows_are_as_long_as_those_of_the_weights() -> None:
    conv, linear = nn.Conv2d(2, 3, 2), nn.Linear(4, 5)
    with torch.no_grad():
        linear.weight[2] = 0
    params = [conv.weight, conv.bias, linear.weight, nn.Parameter(torch.tensor(2.0))]
    found = filter_normalised(params, torch.Generator().manual_seed(7))
    assert found[1] is None
    assert found[3] is None
    generator = torch.Generator().manual_seed(7)
    for weight, direction in ((conv.weight, found[0]), (linear.weight, found[2])):
        noise = torch.randn(weight.shape, generator=generator)
        for row, gaussian, own in zip(direction, noise, weight, strict=True):
            torch.testing.assert_close(row, gaussian * own.norm() / gaussian.norm())
    assert not found[2][2].any()


def test_a_slice_of_a_quadratic_is_its_parabola() -> None:
    model = Quadratic()
    (d, _) = filter_normalised([model.weight, model.bias], torch.Generator().manual_seed(3))
    closures = [lambda: model(slice(0, 3)), lambda: model(slice(3, 4))]  # unequal: the mean is over examples
    found = loss_slice(model, closures, distance=2.0, points=9, seed=3)
    assert found.coordinates == pytest.approx([-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2])
    w = model.weight.detach()
    for x, loss in zip(found.coordinates, found.losses, strict=True):
        exact = (model.a * (w + x * d - model.c).square().sum(1)).mean() / 2
        assert loss == pytest.approx(float(exact), rel=1e-12)
    curvature = float((model.a * d.square().sum(1)).mean())
    assert found.rise == pytest.approx(curvature * 2.0**2 / 2, rel=1e-10)  # the odd part cancels
    assert f"the loss changes by {found.rise:+.3g}" in found.reading


def test_a_plane_of_a_quadratic_is_its_bowl() -> None:
    model = Quadratic()
    generator = torch.Generator().manual_seed(5)
    d, e = (filter_normalised([model.weight], generator)[0] for _ in range(2))
    found = loss_plane(model, [lambda: model(slice(0, 4))], distance=0.6, points=5, seed=5)
    w = model.weight.detach()
    for i, y in enumerate(found.coordinates):
        for j, x in enumerate(found.coordinates):
            exact = (model.a * (w + x * d + y * e - model.c).square().sum(1)).mean() / 2
            assert found.losses[i][j] == pytest.approx(float(exact), rel=1e-12)
    border = [found.losses[i][j] for i in range(5) for j in range(5) if {i, j} & {0, 4}]
    assert found.rise == pytest.approx(sum(border) / len(border) - found.losses[2][2])


def test_the_seed_decides_and_the_plane_begins_with_the_slice() -> None:
    model = net()
    slice_, plane = (f(model, closures_of(model), points=5, seed=1) for f in (loss_slice, loss_plane))
    assert plane.losses[2] == slice_.losses
    assert loss_slice(model, closures_of(model), points=5, seed=1) == slice_
    assert loss_slice(model, closures_of(model), points=5, seed=2) != slice_


def test_every_point_has_the_same_dropout_masks() -> None:
    """Along a line on which nothing changes the loss is constant, though dropout is on."""
    model = net()
    with torch.no_grad():
        model.first.weight.zero_()  # a row of zeros does not move
    for p in (*model.last.parameters(), *model.norm.parameters()):
        p.requires_grad_(False)
    found = loss_slice(model, closures_of(model), points=5)
    assert len(set(found.losses)) == 1
    model.eval()
    assert loss_slice(model, closures_of(model), points=3).losses[0] != found.losses[0]


@pytest.mark.parametrize("measure", [loss_slice, loss_plane, loss_path])
def test_leaves_nothing(measure: Callable[..., object]) -> None:
    if measure is loss_path:
        measure = partial(loss_path, other=net(9))
    model = net()
    gradients, before = with_gradients(model), state_of(model)
    measure(model, closures=closures_of(model))
    assert_untouched(model, before, gradients)

    calls = []

    def failing() -> Tensor:
        calls.append(None)
        if len(calls) == 3:
            torch.rand(1)
            raise KeyboardInterrupt
        return closures_of(model)[0]()

    with pytest.raises(KeyboardInterrupt):
        measure(model, closures=[failing])
    assert_untouched(model, before, gradients)


def test_half_precision_weights_come_back() -> None:
    model = nn.Linear(5, 3).bfloat16()
    before = model.weight.detach().clone()
    x, y = torch.randn(4, 5).bfloat16(), torch.arange(4) % 3
    found = loss_slice(model, [lambda: F.cross_entropy(model(x).float(), y, reduction="none")], points=3)
    assert torch.equal(model.weight, before)
    assert found.losses[0] != found.losses[1]


# The line between two checkpoints


def test_the_path_of_a_quadratic() -> None:
    one, two = Quadratic(), Quadratic()
    two.a, two.c = one.a, one.c
    found = loss_path(one, two, [lambda: one(slice(0, 4))], points=5, beyond=0.3)
    assert found.coordinates == pytest.approx([-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5])
    w, v = one.weight.detach(), two.weight.detach()
    for t, loss in zip(found.coordinates, found.losses, strict=True):
        exact = (one.a * (w + t * (v - w) - one.c).square().sum(1)).mean() / 2
        assert loss == pytest.approx(float(exact), rel=1e-12)
    assert found.barrier == 0  # convex: never above the chord
    apart = (w - v).square().sum() + (one.bias - two.bias).detach().square().sum()
    assert found.distance == pytest.approx(float(apart.sqrt()))


def test_the_height_of_a_barrier() -> None:
    assert barrier([0, 0.25, 0.5, 0.75, 1], [1.0, 2.0, 4.0, 1.0, 2.0]) == pytest.approx(2.5)
    assert barrier([0, 0.5, 1], [1.0, 0.2, 3.0]) == 0


def test_both_ends_are_the_checkpoints() -> None:
    """Also frozen weights and running statistics; a state dict will do, and one name of tied weights."""
    model, other = net(), net(9)
    with torch.no_grad():
        for x in torch.randn(3, 6, 5).double():
            other(x)  # other running statistics
    model.eval()
    other.eval()
    state = {k: v for k, v in other.state_dict().items() if k != "again.weight"}
    for end in (other, state):
        found = loss_path(model, end, closures_of(model), points=3, beyond=0)
        ends = [torch.cat([c() for c in closures_of(m)]).mean().item() for m in (model, other)]
        assert [found.losses[0], found.losses[-1]] == pytest.approx(ends, rel=1e-12)
    assert abs(ends[0] - ends[1]) > 1e-3


def test_other_architectures_are_refused() -> None:
    model = net()
    state = model.state_dict()
    lacking = {k: v for k, v in state.items() if not k.startswith("last")}
    shaped = {**state, "last.bias": torch.zeros(4)}
    untied = {**state, "again.weight": state["again.weight"] + 1}
    for end, message in (
        (lacking, "it lacks last.weight, last.bias"),
        ({**state, "more": torch.zeros(1)}, "it has more"),
        (shaped, r"last.bias has the shape \[4\] there, \[3\] here"),
        (untied, "first.weight and again.weight are one here, but differ there"),
    ):
        before = copy.deepcopy(state)
        with pytest.raises(ValueError, match=message):
            loss_path(model, end, closures_of(model))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 4}, r"loss_slice\(points=4\): give an odd number"),
        ({"points": 1}, "give an odd number, 3 or more"),
        ({"distance": 0.0}, r"loss_slice\(distance=0.0\)"),
        ({"distance": float("nan")}, r"loss_slice\(distance=nan\)"),
    ],
)
def test_bad_arguments(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_slice(net(), closures_of(net()), **change)


def test_what_cannot_be_measured_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match="there is no closure"):
        loss_slice(model, [])
    with pytest.raises(ValueError, match="one loss per example"):
        loss_slice(model, [lambda: closures_of(model)[0]().mean()])
    with pytest.raises(ValueError, match="no trainable parameter has rows"):
        loss_plane(model.norm, closures_of(model))
    with pytest.raises(ValueError, match="points=1"):
        loss_path(model, net(9), closures_of(model), points=1)
    with pytest.raises(ValueError, match="beyond"):
        loss_path(model, net(9), closures_of(model), beyond=-1)


def test_plots_show_the_numbers() -> None:
    model = net()
    line, plane = (f(model, closures_of(model), points=5) for f in (loss_slice, loss_plane))
    ax = plot_slice({"a": line, "b": line})
    assert ax.lines[0].get_ydata() == pytest.approx(line.losses)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    ax = plot_plane(plane)
    assert list(ax.lines[0].get_xdata()) == [0]
    path = loss_path(model, net(9), closures_of(model), points=3)
    ax = plot_path(path)
    assert ax.lines[0].get_xdata() == pytest.approx(path.coordinates)
    assert ax.lines[1].get_ydata() == pytest.approx([path.losses[1], path.losses[-2]])
    assert ax.get_xlabel().startswith("position on the line")
