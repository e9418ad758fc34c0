"""RW-SAM: Gibbs weights, the signs they are estimated with, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from classifier import losses
from deltasam import RWSAM

SIZES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("weights", ["norms", "slopes"])
@pytest.mark.parametrize("tilt", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_gibbs_distribution_of_the_norms(weights: str, tilt: float, scale: float) -> None:
    """Losses a_i w x have gradients, and differences, in the ratio of a_i, whatever the loss is multiplied with."""
    model = nn.Linear(5, 1, bias=False).double()
    x = torch.ones(3, 5, dtype=torch.float64)
    step = RWSAM(model, tilt=tilt, weights=weights).backward(lambda: scale * SIZES * model(x)[:, 0])
    expected = torch.exp(tilt * SIZES / SIZES.mean())
    torch.testing.assert_close(step.metrics["weights"], expected / expected.mean())


def test_without_tilt_it_is_sam(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    found = []
    for method in (RWSAM(model, rho=0.1, tilt=0.0), deltasam.SAM(model, rho=0.1)):
        model.zero_grad()
        method.backward(lambda: losses(model, batch))
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)


def test_a_large_tilt_takes_the_largest_gradient(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """And overflows nowhere."""
    norms = deltasam.per_example_grad_norms(model, lambda: losses(model, batch))
    weights = RWSAM(model, tilt=1e6, weights="norms").backward(lambda: losses(model, batch)).metrics["weights"]
    assert weights.tolist() == [len(norms) * (i == int(norms.argmax())) for i in range(len(norms))]


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_weights_that_cannot_be_told_are_all_the_same(factor: float) -> None:
    assert (RWSAM(nn.Linear(1, 1)).weigh(factor * SIZES) == 1).all()


def test_it_looks_along_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single forward, in which every weight moves by sigma, up or down."""
    model = nn.Linear(30, 20)
    before = [p.detach().clone() for p in model.parameters()]
    moved: list[Tensor] = []

    def closure() -> Tensor:
        if not torch.is_grad_enabled():
            moved.append(torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]))
        return model(torch.ones(4, 30)).square().sum(1)

    RWSAM(model, sigma=0.25).backward(closure)
    assert len(moved) == 1
    torch.testing.assert_close(moved[0].abs(), torch.full_like(moved[0], 0.25))
    assert 0.4 < (moved[0] > 0).double().mean() < 0.6


@pytest.mark.parametrize(("weights", "expected"), [("auto", 2), ("norms", 2), ("slopes", 3)])
def test_cost(weights: str, expected: int) -> None:
    case, calls = cases.make("bert"), []
    method = RWSAM(case.model, weights=weights)
    for _ in range(2):
        calls.clear()
        method.backward(lambda: (calls.append(0), case.closure())[1])
    assert len(calls) == expected  # the first step is checked, where there are norms


def test_what_it_needs_is_said_under_its_own_name(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="RWSAM needs one loss per example"):
        RWSAM(model).backward(lambda: losses(model, batch).mean())
    with pytest.raises(ValueError, match=r"RWSAM\(weights='curvature'\): weights must be one of 'auto', 'norms', 'sl"):
        RWSAM(model, weights="curvature")
    with pytest.raises(ValueError, match=r"RWSAM\(tilt=-1\): tilt must be a finite number, 0 or more"):
        RWSAM(model, tilt=-1)
    with pytest.raises(deltasam.NotCoveredError, match=r"(?s)RWSAM\(weights='norms'\).*BatchNorm1d.*'slopes'"):
        RWSAM((case := cases.make("mlp")).model, weights="norms").backward(case.closure)
    with pytest.warns(RuntimeWarning, match=r"RWSAM\(sigma=1e-12\): the loss changes by no more than rounding"):
        RWSAM(model, sigma=1e-12).backward(lambda: losses(model, batch))
