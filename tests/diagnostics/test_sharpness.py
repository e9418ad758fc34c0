"""Worst-case sharpness beside closed forms and beside loops over groups, straight from its definition."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import architectures
import cases
import deltasam
from deltasam import reference
from deltasam.diagnostics import Sharpness, sharpness
from deltasam.diagnostics.flatness.ascent import batches_of_whole_groups, groups_of
from quadratic import EXAMPLES, Quadratic

RHO = 0.1
MS = (1, 2, 3, 4, 5, 12, 100, None)
CUTS = ([12], [6, 6], [4, 4, 4], [5, 7], [1] * 12, [2, 10])


def by_definition(losses: reference.Losses, w: reference.Weights, m: int | None, adaptive: bool) -> list[float]:
    """The mean rise of each group, one group after the other."""
    before = losses(w).detach()
    n = len(before)
    rises = []
    for start in range(0, n, m or n):
        rows = slice(start, start + (m or n))
        g = reference.gradient(losses(w)[rows].mean(), w)
        unit = {k: v.detach().abs() if adaptive else torch.ones_like(v) for k, v in w.items()}
        scaled = {k: unit[k] * g[k] for k in g}
        there = reference.moved(w, {k: unit[k] * v for k, v in scaled.items()}, reference.step(RHO, scaled))
        rises.append(float((losses(there).detach() - before)[rows].mean()))
    return rises


# Closed forms.


@pytest.mark.parametrize("m", [1, 4, None])
@pytest.mark.parametrize("adaptive", [False, True])
def test_quadratic_in_closed_form(m: int | None, adaptive: bool) -> None:
    """``rho |T g| + rho² / 2 (T² g)^T A (T² g) / |T g|²``, group by group."""
    model = Quadratic()
    unit = model.w.detach().abs() if adaptive else torch.ones_like(model.w)
    expected = []
    for g in (part.mean(0) for part in model.gradients().split(m or EXAMPLES)):
        length, way = (unit * g).norm(), unit**2 * g
        expected.append(float(RHO * length + RHO**2 / 2 * way @ model.matrix @ way / length**2))
    found = sharpness(model, model.closures([6, 6]), rho=RHO, m=m, adaptive=adaptive)
    assert found.group_rises == pytest.approx(expected, rel=1e-12)
    assert found.rise == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    if m is None:
        assert found.standard_error is None
    else:
        deviation = torch.tensor(expected, dtype=torch.float64).std()
        assert found.standard_error == pytest.approx(float(deviation) / math.sqrt(len(expected)), rel=1e-10)


def test_more_steps_find_the_maximum_on_the_ball() -> None:
    """In two dimensions all directions can be tried."""
    model, rho = Quadratic((8.0, -1.0)), 0.7
    g = model.gradients().mean(0)
    angles = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    highest = max(model.rise(rho * torch.stack([a.cos(), a.sin()]), g) for a in angles)
    one, many = (sharpness(model, model.closures(), rho=rho, steps=steps).rise for steps in (1, 40))
    assert one < highest * 0.98
    assert many == pytest.approx(highest, rel=1e-3)
    assert many <= highest * (1 + 1e-7)


def test_more_steps_stay_in_the_ball_of_their_units() -> None:
    model, where = Quadratic((-6.0, 5.0)), []
    closure = model.closures()[0]

    def noted() -> Tensor:
        where.append(model.w.detach().clone())
        return closure()

    for adaptive in (False, True):
        unit = model.w.detach().abs() if adaptive else 1.0
        sharpness(model, [noted], rho=RHO, steps=8, adaptive=adaptive)
        lengths = [float(((place - model.w.detach()) / unit).norm()) for place in where]
        assert max(lengths) == pytest.approx(RHO, rel=1e-10)
        where.clear()


@pytest.mark.parametrize(("m", "adaptive"), [(None, False), (3, False), (None, True)])
def test_monotone_in_steps(m: int | None, adaptive: bool) -> None:
    """Far out, where one step overshoots."""
    model, closures, _ = mlp([12])
    rises = [sharpness(model, closures, rho=8.0, m=m, steps=s, adaptive=adaptive).rise for s in range(1, 9)]
    assert rises == sorted(rises)
    assert rises[-1] > rises[0] * 1.001


def test_the_best_step_counts_not_the_last() -> None:
    """Over a hill every second step goes too far, the third one down again."""
    model = Quadratic((-6.0, -5.0))
    rises = [sharpness(model, model.closures(), rho=1.0, steps=s).rise for s in range(1, 9)]
    assert rises == sorted(rises)
    assert rises[1] > 2 * rises[0]
    assert rises[2] == rises[1]


# A model that is not linear, in every cut, beside the definition.


def mlp(sizes: list[int]) -> tuple[nn.Module, list[Callable[[], Tensor]], tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    return model, [lambda a=a, b=b: F.cross_entropy(model(a), b, reduction="none") for a, b in parts], (x, y)


@pytest.mark.parametrize("m", MS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_the_definition_however_the_data_are_cut(m: int | None, adaptive: bool) -> None:
    model, _, (x, y) = mlp([12])
    losses, w = reference.losses_function(model, lambda call: F.cross_entropy(call(x), y, reduction="none"))
    expected = by_definition(losses, w, m, adaptive)
    for sizes in CUTS:
        model, closures, _ = mlp(sizes)
        found = sharpness(model, closures, rho=RHO, m=m, adaptive=adaptive)
        assert found.group_rises == pytest.approx(expected, rel=1e-10)
        weights = found.group_sizes
        assert sum(weights) == found.examples == 12
        assert all(size == (m or 12) for size in weights[:-1])
        mean = sum(r * s for r, s in zip(expected, weights, strict=True)) / 12
        assert found.rise == pytest.approx(mean, rel=1e-10)
        assert found.loss == pytest.approx(float(losses(w).detach().mean()), rel=1e-12)


@pytest.mark.parametrize("sizes", CUTS)
def test_engine_and_loop_see_the_same_groups(sizes: list[int]) -> None:
    for m in MS:
        groups = groups_of(sizes, m)
        assert [sum(r.stop - r.start for _, r in g) for g in groups[:-1]] == [m] * (len(groups) - 1)
        rows = [(number, row) for g in groups for number, r in g for row in range(r.start, r.stop)]
        assert rows == [(number, row) for number, size in enumerate(sizes) for row in range(size)]
        for number in batches_of_whole_groups(sizes, m):
            own = [g for g in groups if any(piece[0] == number for piece in g)]
            assert all(len(g) == 1 and g[0][1].stop - g[0][1].start == m for g in own)
            assert len(own) > 1


@pytest.mark.parametrize("name", ["bert", "padded", "gpt2", "lora"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_transformers_with_dropout(name: str, adaptive: bool) -> None:
    """Biases, LayerNorm, lookups, a tied table: one example at a time, with the same masks in all passes."""
    case = cases.make(name)
    for m in (1, 2, None):
        torch.manual_seed(3)
        losses, w = reference.losses_function(case.model, lambda call: case.run(call, None))
        expected = by_definition(losses, w, m, adaptive)
        torch.manual_seed(3)
        found = sharpness(case.model, [case.closure], rho=RHO, m=m, adaptive=adaptive)
        assert found.group_rises == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found.rise == pytest.approx(sum(expected) / len(expected), rel=1e-10)


@pytest.mark.parametrize("name", ["t5", "conv2d", "deberta"])
def test_other_architectures_in_units_of_the_weights(name: str) -> None:
    case = architectures.make(name)
    torch.manual_seed(3)
    losses, w = reference.losses_function(case.model, lambda call: case.run(call, architectures.ALL))
    expected = by_definition(losses, w, 1, True)
    torch.manual_seed(3)
    found = sharpness(case.model, [case.closure], rho=RHO, m=1, adaptive=True)
    assert found.group_rises == pytest.approx(expected, rel=case.tolerance * 10)


def test_is_what_sam_reports() -> None:
    model, closures, _ = mlp([12])
    metrics = deltasam.SAM(model, rho=RHO).backward(closures[0]).metrics
    assert sharpness(model, closures, rho=RHO).rise == pytest.approx(
        float(metrics["perturbed_loss"] - metrics["loss"]), rel=1e-10
    )
    metrics = deltasam.PerInstanceSAM(model, rho=RHO).backward(closures[0]).metrics
    assert sharpness(model, closures, rho=RHO, m=1).rise == pytest.approx(
        float(metrics["perturbed_loss"] - metrics["loss"]), rel=1e-10
    )


def test_adaptive_is_invariant_where_the_plain_one_is_not() -> None:
    """A ReLU net whose layers are rescaled computes the same (Dinh et al. 2017)."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(0, 3, (8,))

    def measured() -> list[float]:
        closures = [lambda: F.cross_entropy(model(x), y, reduction="none")]
        return [sharpness(model, closures, rho=RHO, m=m, adaptive=a).rise for a in (True, False) for m in (1, None)]

    before = measured()
    with torch.no_grad():
        for parameter, factor in zip(model.parameters(), (8.0, 8.0, 1 / 8, 1.0), strict=True):
            parameter.mul_(factor)
    after = measured()
    assert after[:2] == pytest.approx(before[:2], rel=1e-10)
    assert all(abs(a / b - 1) > 0.1 for a, b in zip(after[2:], before[2:], strict=True))


class Aging(nn.Module):
    """What it computes depends on a buffer that every forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("age", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.age += 1
        return self.linear(x) * (1 + self.age)


@pytest.mark.parametrize("m", [1, 4, None])
def test_every_run_of_every_batch_begins_with_the_buffers_of_the_first(m: int | None) -> None:
    model = Aging().double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    parts = list(zip(x.split(6), y.split(6), strict=True))
    found, young = (
        sharpness(model, [lambda a=a, b=b: F.cross_entropy(call(a), b, reduction="none") for a, b in parts], m=m)  # noqa: B023
        for call in (model, lambda a: 2 * model.linear(a))
    )
    assert found.group_rises == pytest.approx(young.group_rises, rel=1e-10)
    assert model.age == 0


def test_one_example_per_perturbation_takes_two_forwards_a_batch() -> None:
    """And the one for the losses; the first batch is checked, which takes some more."""
    calls: list[int] = []
    forwards = []
    for sizes in ([4, 4, 4], [6, 6]):
        model, closures, _ = mlp(sizes)
        counted = [lambda c=c: (calls.append(0), c())[1] for c in closures]
        calls.clear()
        sharpness(model, counted, rho=RHO, m=1)
        forwards.append(len(calls))
    assert forwards[0] - forwards[1] == 3
    calls.clear()
    sharpness(model, counted, rho=RHO)
    assert len(calls) == 6


def test_float32_agrees_with_float64() -> None:
    case, found = cases.make("padded", torch.float32), []
    for dtype in (torch.float32, torch.float64):
        case.model.to(dtype)
        found.append([sharpness(case.model, [case.closure], rho=RHO, m=m).rise for m in (1, None)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# What cannot be measured.


def test_a_model_that_is_not_covered() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double().train()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 3, (6,))
    closures = [lambda: F.cross_entropy(model(x), y, reduction="none")]
    with pytest.raises(deltasam.NotCoveredError, match=r"sharpness\(m=2\)[\s\S]*BatchNorm1d[\s\S]*Ways out.*m=None"):
        sharpness(model, closures, m=2)
    assert sharpness(model, closures).rise > 0
    assert sharpness(model, closures, m=6).rise == sharpness(model, closures).rise
    model.eval()
    assert sharpness(model, closures, m=2).rise > 0


def test_a_way_out_is_named_for_any_model() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False, affine=False), nn.Linear(6, 3))
    model, x, y = model.double(), torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    with pytest.raises(deltasam.NotCoveredError, match="give batches of 1 each"):
        sharpness(model, [lambda: F.cross_entropy(model(x), y, reduction="none")], m=1)


def test_losses_that_depend_on_other_examples_have_no_sharpness_of_their_own() -> None:
    model = nn.Linear(5, 4).double()
    x = torch.randn(6, 5, dtype=torch.float64)

    def contrastive() -> Tensor:
        h = model(x)
        return F.cross_entropy(h @ h.T, torch.arange(6), reduction="none")

    with pytest.raises(ValueError, match=r"depends on the others of its batch.*m=None"):
        sharpness(model, [contrastive], m=1)
    assert sharpness(model, [contrastive]).rise > 0


def test_no_gradient_no_rise() -> None:
    model, closures, _ = mlp([6, 6])
    for m in (1, 4, None):
        with pytest.warns(RuntimeWarning, match=r"sharpness\(rho=0\.1\).*which rounding could make; raise rho"):
            found = sharpness(model, [lambda c=c: 0.0 * c() + 1 for c in closures], rho=RHO, m=m)
        assert set(found.group_rises) == {0.0}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    model, closures, _ = mlp([6, 6])
    with pytest.raises(ValueError, match="sharpness: a loss of batch 1 is not finite"):
        sharpness(model, [closures[0], lambda: closures[1]() * bad])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rho": 0}, r"sharpness\(rho=0\): rho must be a finite number, above 0"),
        ({"rho": math.nan}, r"sharpness\(rho=nan\)"),
        ({"m": 0}, r"sharpness\(m=0\): m must be a whole number, 1 or more"),
        ({"m": 1.5}, r"sharpness\(m=1\.5\)"),
        ({"m": math.inf}, r"sharpness\(m=inf\)"),
        ({"steps": 0}, r"sharpness\(steps=0\)"),
        ({"closures": []}, "there is no closure in it; give one per batch"),
    ],
)
def test_hostile_input(arguments: dict[str, Any], words: str) -> None:
    model, closures, _ = mlp([12])
    with pytest.raises(ValueError, match=words) as error:
        sharpness(model, **{"closures": closures, **arguments})
    assert "\n" not in str(error.value)


def test_one_loss_for_all_is_refused() -> None:
    model, closures, _ = mlp([12])
    with pytest.raises(ValueError, match=r"sharpness needs one loss per example.*reduction='none'"):
        sharpness(model, [lambda: closures[0]().mean()])


def test_no_grad_and_nothing_to_train_are_refused() -> None:
    model, closures, _ = mlp([12])
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"sharpness was called under torch\.no_grad"):
        sharpness(model, closures)
    with pytest.raises(ValueError, match="no trainable parameter"):
        sharpness(model.requires_grad_(False), closures)


def test_result_can_be_kept_and_read() -> None:
    model, closures, _ = mlp([12])
    found = sharpness(model, closures, m=5)
    kept = json.loads(json.dumps(dataclasses.asdict(found)))
    assert Sharpness(**{**kept, **{k: tuple(kept[k]) for k in ("group_rises", "group_sizes")}}) == found
    assert found.group_sizes == (5, 5, 2)
    assert "chosen against 5 at a time" in found.reading
    assert "Dinh" in found.reading
    assert "no reliable sign" in found.reading
    assert "Dinh" not in sharpness(model, closures, adaptive=True).reading
