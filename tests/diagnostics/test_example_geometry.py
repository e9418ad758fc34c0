"""Losses, norms and curvatures of single examples beside closed forms, finite differences and one at a time."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import architectures
import cases
import deltasam
from deltasam import reference
from deltasam.diagnostics import ExampleGeometry, example_geometry
from quadratic import EXAMPLES, Quadratic


def one_at_a_time(losses: reference.Losses, w: reference.Weights) -> tuple[list[float], list[float]]:
    """Norm and ``g^T H g / |g|²`` of every example, by two backwards of its own loss."""
    norms, curvatures = [], []
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(len(losses(w))):
            weights = list(w.values())
            g = torch.autograd.grad(losses(w)[i], weights, create_graph=True, allow_unused=True, materialize_grads=True)
            along = sum((a * a.detach()).sum() for a in g)
            h = torch.autograd.grad(along, weights, allow_unused=True, materialize_grads=True)
            square = sum(float(a.detach().square().sum()) for a in g)
            norms.append(math.sqrt(square))
            curvatures.append(sum(float((a.detach() * b).sum()) for a, b in zip(g, h, strict=True)) / square)
    return norms, curvatures


def test_quadratic_in_closed_form() -> None:
    model = Quadratic()
    found = example_geometry(model, model.closures([7, 5]))
    g = model.gradients()
    assert found.losses == pytest.approx(model(model.centres).tolist(), rel=1e-12)
    assert found.norms == pytest.approx(g.norm(dim=1).tolist(), rel=1e-12)
    expected = ((g @ model.matrix) * g).sum(1) / g.square().sum(1)
    assert found.curvatures == pytest.approx(expected.tolist(), rel=1e-10)
    assert len(found.norms) == EXAMPLES


def test_equals_finite_differences() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3)).double()
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(0, 3, (8,))
    losses, w = reference.losses_function(model, lambda call: F.cross_entropy(call(x), y, reduction="none"))
    found = example_geometry(
        model, [lambda r=r: F.cross_entropy(model(x[r]), y[r], reduction="none") for r in (slice(0, 3), slice(3, 8))]
    )
    h = 1e-3
    for i in range(8):
        g = reference.gradient(losses(w)[i], w)
        at = [float(losses(reference.moved(w, g, k * h / reference.norm(g))).detach()[i]) for k in (-2, -1, 0, 1, 2)]
        slope = (at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * h)
        bend = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h**2)
        assert found.losses[i] == pytest.approx(at[2], rel=1e-12)
        assert found.norms[i] == pytest.approx(slope, rel=1e-8)
        assert found.curvatures[i] == pytest.approx(bend, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["bert", "padded", "gpt2", "lora"])
def test_transformers_with_dropout(name: str) -> None:
    case = cases.make(name)
    torch.manual_seed(3)
    losses, w = reference.losses_function(case.model, lambda call: case.run(call, None))
    norms, curvatures = one_at_a_time(losses, w)
    torch.manual_seed(3)
    found = example_geometry(case.model, [case.closure])
    assert found.norms == pytest.approx(norms, rel=1e-9)
    assert found.curvatures == pytest.approx(curvatures, rel=1e-8)


@pytest.mark.parametrize("name", ["t5", "conv2d", "deberta", "bert_checkpointing"])
def test_other_architectures(name: str) -> None:
    case = architectures.make(name)
    torch.manual_seed(3)
    plain = case.plain
    losses, w = reference.losses_function(plain, lambda call: case.run(call, architectures.ALL))
    _, curvatures = one_at_a_time(losses, w)
    torch.manual_seed(3)
    found = example_geometry(case.model, [case.closure])
    assert found.curvatures == pytest.approx(curvatures, rel=max(case.tolerance * 100, 1e-8))


def wide(rows: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Many rows per example: gradients of single examples are formed, not kept as outer products."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(3, rows, 3, dtype=torch.float64), torch.randn(3, rows, 2, dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 200])
def test_formed_gradients_and_outer_products(rows: int) -> None:
    model, x, y = wide(rows)
    losses, w = reference.losses_function(model, lambda call: (call(x) - y).square().mean((1, 2)))
    norms, curvatures = one_at_a_time(losses, w)
    found = example_geometry(model, [lambda: (model(x) - y).square().mean((1, 2))])
    assert found.norms == pytest.approx(norms, rel=1e-10)
    assert found.curvatures == pytest.approx(curvatures, rel=1e-9)


def test_an_example_without_a_gradient_has_no_direction() -> None:
    model = Quadratic()
    with torch.no_grad():
        model.centres[3] = model.w
    found = example_geometry(model, model.closures([6, 6]))
    assert found.norms[3] == 0
    assert [i for i, c in enumerate(found.curvatures) if c is None] == [3]
    others = torch.cat([model.gradients()[:3], model.gradients()[4:]])
    expected = ((others @ model.matrix) * others).sum(1) / others.square().sum(1)
    assert [c for c in found.curvatures if c is not None] == pytest.approx(expected.tolist(), rel=1e-10)


def test_a_linear_loss_is_not_bent_and_a_constant_one_has_no_gradient() -> None:
    model = nn.Linear(4, 1).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    found = example_geometry(model, [lambda: model(x)[:, 0], lambda: 0 * model(x)[:, 0]])
    assert found.norms[:6] == pytest.approx((x.square().sum(1) + 1).sqrt().tolist(), rel=1e-12)
    assert found.curvatures == (0.0,) * 6 + (None,) * 6


def test_float32_agrees_with_float64() -> None:
    case, found = cases.make("padded", torch.float32), []
    for dtype in (torch.float32, torch.float64):
        case.model.to(dtype)
        found.append(example_geometry(case.model, [case.closure]))
    assert found[0].norms == pytest.approx(found[1].norms, rel=1e-4)
    assert found[0].curvatures == pytest.approx(found[1].curvatures, rel=1e-3)


def test_a_model_that_is_not_covered() -> None:
    model, x = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), torch.randn(6, 5)
    with pytest.raises(deltasam.NotCoveredError, match=r"example_geometry: [\s\S]*BatchNorm1d[\s\S]*Ways out: freeze"):
        example_geometry(model, [lambda: F.cross_entropy(model(x), torch.zeros(6).long(), reduction="none")])


def test_losses_that_depend_on_other_examples_are_refused() -> None:
    model = nn.Linear(5, 4).double()
    x = torch.randn(6, 5, dtype=torch.float64)

    def contrastive() -> Tensor:
        h = model(x)
        return F.cross_entropy(h @ h.T, torch.arange(6), reduction="none")

    with pytest.raises(ValueError, match=r"example_geometry: the loss of one example depends on the others"):
        example_geometry(model, [contrastive])
    with pytest.raises(ValueError, match="depends on the others"):
        example_geometry(model, [lambda: model(x[:1]).sum(1), contrastive])


def test_result_can_be_kept_and_read() -> None:
    model = Quadratic()
    found = example_geometry(model, model.closures())
    kept = json.loads(json.dumps(dataclasses.asdict(found)))
    assert ExampleGeometry(**{k: tuple(v) for k, v in kept.items()}) == found
    assert "Of 12 examples the 1 with the largest" in found.reading
