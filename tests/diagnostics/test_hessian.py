"""The Hessian's figures beside known eigenvalues, finite differences, and the whole matrix of small models."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import curvlinops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import architectures
import cases
from deltasam import reference
from deltasam.diagnostics import HessianSpectrum, hessian_spectrum
from deltasam.diagnostics.batches import Batches
from deltasam.diagnostics.hessian import twice_differentiable
from deltasam.diagnostics.hessian_operator import ClosureHessian
from quadratic import EIGENVALUES, Quadratic


def test_quadratic_has_the_eigenvalues_it_was_made_of() -> None:
    model = Quadratic()
    found = hessian_spectrum(model, model.closures([7, 5]), k=4, tolerance=0.0, trace_samples=300)
    assert found.eigenvalues == pytest.approx(sorted(EIGENVALUES, reverse=True)[:4], rel=1e-10)
    assert abs(found.trace - sum(EIGENVALUES)) < 4 * found.trace_standard_error
    off = model.matrix - torch.diag(model.matrix.diagonal())
    deviation = math.sqrt(2 * float(off.square().sum()))  # of z^T A z for random signs z
    assert found.trace_standard_error == pytest.approx(deviation / math.sqrt(300), rel=0.2)
    assert (found.weights, found.examples) == (6, 12)
    assert found.loss == pytest.approx(float(model(model.centres).detach().mean()), rel=1e-12)


def flat(vector: Any) -> Tensor:
    return torch.cat([v.flatten() for v in vector])


def matrix_by_differences(losses: reference.Losses, w: reference.Weights) -> Tensor:
    """The Hessian of the mean loss, column by column, from differences of gradients."""
    h, size = 1e-4, sum(v.numel() for v in w.values())
    sizes = [v.numel() for v in w.values()]

    def gradient(step: Tensor) -> Tensor:
        parts = step.split(sizes)
        there = {k: (v.detach() + s.view(v.shape)).requires_grad_() for (k, v), s in zip(w.items(), parts, strict=True)}
        return flat(reference.gradient(losses(there).mean(), there).values())

    def column(unit: Tensor) -> Tensor:
        ahead, back = (gradient(s * h * unit) for s in (1, -1))
        farther, behind = (gradient(s * 2 * h * unit) for s in (1, -1))
        return (8 * (ahead - back) - (farther - behind)) / (12 * h)

    return torch.stack([column(unit) for unit in torch.eye(size, dtype=torch.float64)])


def mlp(sizes: list[int]) -> tuple[nn.Module, list[Callable[[], Tensor]], tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randint(0, 2, (9,))
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    return model, [lambda a=a, b=b: F.cross_entropy(model(a), b, reduction="none") for a, b in parts], (x, y)


@pytest.mark.parametrize("sizes", [[9], [4, 5], [1, 8]])
def test_equals_finite_differences(sizes: list[int]) -> None:
    model, closures, (x, y) = mlp(sizes)
    losses, w = reference.losses_function(model, lambda call: F.cross_entropy(call(x), y, reduction="none"))
    matrix = matrix_by_differences(losses, w)
    found = hessian_spectrum(model, closures, k=5, tolerance=0.0, trace_samples=100)
    assert found.eigenvalues == pytest.approx(torch.linalg.eigvalsh(matrix).flip(0)[:5].tolist(), rel=1e-7)
    assert abs(found.trace - float(matrix.trace())) < 4 * found.trace_standard_error
    operator = ClosureHessian(Batches("test", model, closures))
    whole = operator @ torch.eye(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(whole, matrix, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(whole, whole.T, rtol=1e-10, atol=1e-13)


def test_why_the_product_is_our_own() -> None:
    """If this fails, the library's own product has been repaired, and the sentence in ClosureHessian is out of date."""
    model, closures, (x, y) = mlp([9])
    ours = ClosureHessian(Batches("test", model, closures))
    theirs = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    v = torch.randn(ours.shape[0], dtype=torch.float64)
    assert (ours @ v - theirs @ v).norm() > 1e-3 * (ours @ v).norm()
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    ours = ClosureHessian(Batches("test", plain, [lambda: F.cross_entropy(plain(x), y, reduction="none")]))
    theirs = curvlinops.HessianLinearOperator(plain, nn.CrossEntropyLoss(), list(plain.parameters()), [(x, y)])
    v = torch.randn(ours.shape[0], dtype=torch.float64)
    torch.testing.assert_close(ours @ v, theirs @ v, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["bert", "gpt2", "bert_checkpointing", "llama"])
def test_products_of_transformers(name: str) -> None:
    """With dropout: beside a difference of gradients at weights moved by hand, with the same masks."""
    case = architectures.make(name)
    plain = case.plain
    torch.manual_seed(3)
    losses, w = reference.losses_function(plain, lambda call: case.run(call, architectures.ALL))
    torch.manual_seed(5)
    v = {k: torch.randn_like(p) for k, p in w.items()}
    h = 1e-4 if case.single else 1e-5
    with sdpa_kernel(SDPBackend.MATH):
        ahead, back = (flat(reference.erm(losses, reference.moved(w, v, s * h)).values()) for s in (1, -1))
    torch.manual_seed(3)
    with twice_differentiable():
        product = ClosureHessian(Batches("test", case.model, [case.closure])) @ flat(v.values())
    difference = (ahead - back) / (2 * h)
    assert (product - difference).norm() < (1e-2 if case.single else 1e-5) * difference.norm()


def test_a_tiny_bert_in_float32() -> None:
    case, found = cases.make("padded", torch.float32), []
    for dtype in (torch.float32, torch.float64):
        case.model.to(dtype)
        found.append(hessian_spectrum(case.model, [case.closure], k=2, tolerance=1e-4, trace_samples=2))
    assert found[0].eigenvalues == pytest.approx(found[1].eigenvalues, rel=1e-3)
    assert found[0].trace == pytest.approx(found[1].trace, rel=1e-2, abs=1e-2)


def test_random_vectors_are_independent_though_batches_replay_their_own_state() -> None:
    model, closures, _ = mlp([4, 5])
    torch.manual_seed(0)
    hessian = ClosureHessian(Batches("test", model, closures))
    estimates = {float(curvlinops.hutchinson_trace(hessian, 1)) for _ in range(12)}
    assert len(estimates) == 12


def test_the_seed_decides() -> None:
    model, closures, _ = mlp([9])
    one, same, other = (hessian_spectrum(model, closures, k=1, seed=s) for s in (0, 0, 1))
    assert one == same
    assert one.trace != other.trace


def test_a_linear_loss_is_flat() -> None:
    model = nn.Linear(4, 1).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    found = hessian_spectrum(model, [lambda: model(x)[:, 0]], k=2)
    assert found.eigenvalues == (0.0, 0.0)
    assert (found.trace, found.trace_standard_error) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, r"hessian_spectrum\(k=0\): k must be a whole number, 1 or more"),
        ({"k": 34}, r"hessian_spectrum\(k=34\): the model has 34 weights; k must be smaller"),
        ({"tolerance": -1}, r"hessian_spectrum\(tolerance=-1\)"),
        ({"trace_samples": 1}, r"hessian_spectrum\(trace_samples=1\)"),
        ({"closures": []}, "there is no closure in it"),
    ],
)
def test_hostile_input(arguments: dict[str, Any], words: str) -> None:
    model, closures, _ = mlp([9])
    assert sum(p.numel() for p in model.parameters()) == 34
    with pytest.raises(ValueError, match=words):
        hessian_spectrum(model, **{"closures": closures, **arguments})


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, closures, _ = mlp([9])
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    monkeypatch.delitem(sys.modules, "deltasam.diagnostics.hessian_operator")
    with pytest.raises(ModuleNotFoundError, match=r"'curvlinops', which is not installed; .*deltasam\[hessian\]"):
        hessian_spectrum(model, closures)


def test_result_can_be_kept_and_read() -> None:
    model = Quadratic()
    found = hessian_spectrum(model, model.closures(), k=2)
    kept = json.loads(json.dumps(dataclasses.asdict(found)))
    assert HessianSpectrum(**{**kept, "eigenvalues": tuple(kept["eigenvalues"])}) == found
    assert "largest is 5:" in found.reading
    assert "no reliable sign" in found.reading
