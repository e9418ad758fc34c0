"""delta-SAM's weights: the exact norms, the two estimates, the noise, and what each costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from classifier import losses
from deltasam.methods.delta_sam import reweight
from deltasam.per_example.record import Record

Batch = tuple[Tensor, Tensor]
Closure = Callable[[], Tensor]


def caught(method: deltasam.DeltaSAM, closure: Closure) -> tuple[deltasam.Step, list[str]]:
    """A step, and what it warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        step = method.backward(closure)
    return step, [str(w.message) for w in found]


def calls(method: deltasam.DeltaSAM, closure: Closure) -> int:
    """How often a step runs the closure."""
    made: list[int] = []
    method.backward(lambda: (made.append(0), closure())[1])
    return len(made)


# Exact norms.


def test_weights_go_by_the_inverse_of_the_norms(model: nn.Module, batch: Batch) -> None:
    norms = deltasam.per_example_grad_norms(model, lambda: losses(model, batch))
    weights = deltasam.DeltaSAM(model, weights="norms").backward(lambda: losses(model, batch)).metrics["weights"]
    assert norms.max() > 1.5 * norms.min()
    torch.testing.assert_close(weights, norms**-0.5 / (norms**-0.5).mean())


def test_norms_see_the_masks_of_the_step() -> None:
    case = cases.make("bert")
    torch.manual_seed(3)
    norms = deltasam.per_example_grad_norms(case.model, case.closure)
    weights = deltasam.DeltaSAM(case.model, weights="norms").backward(case.closure).metrics["weights"]
    torch.testing.assert_close(weights, norms**-0.5 / (norms**-0.5).mean())


@pytest.mark.parametrize("weights", ["auto", "norms"])
@pytest.mark.parametrize("reduce", [Tensor.mean, Tensor.sum])
def test_a_scalar_loss_is_enough_for_norms(weights: str, reduce: Callable[[Tensor], Tensor]) -> None:
    case = cases.make("bert")
    found = []
    for closure in (case.closure, lambda: reduce(case.closure())):
        torch.manual_seed(3)
        case.model.zero_grad()
        step = deltasam.DeltaSAM(case.model, rho=0.3, weights=weights).backward(closure)
        found.append({n: p.grad for n, p in case.model.named_parameters()} | step.metrics)
    scale = cases.EXAMPLES if reduce is Tensor.sum else 1
    for key, value in found[0].items():
        # A norm is of one example's loss, or of its share in the scalar.
        factors = {"weights": 1, "radius_ratio": 1, "example_norms": scale / cases.EXAMPLES}
        expected = factors.get(key, scale) * value
        torch.testing.assert_close(found[1][key], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", ["slopes", "curvature"])
def test_a_scalar_loss_is_not_enough_for_estimates(model: nn.Module, batch: Batch, weights: str) -> None:
    with pytest.raises(ValueError, match="DeltaSAM needs one loss per example"):
        deltasam.DeltaSAM(model, weights=weights).backward(lambda: losses(model, batch).mean())


@pytest.mark.parametrize(("weights", "expected"), [("auto", 2), ("norms", 2), ("slopes", 3), ("curvature", 4)])
def test_cost(weights: str, expected: int) -> None:
    case = cases.make("bert")
    method = deltasam.DeltaSAM(case.model, weights=weights)
    calls(method, case.closure)  # the first step is checked, where there are norms
    assert calls(method, case.closure) == expected


# What is not covered.


def test_a_model_that_is_not_covered_is_estimated_in_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make("mlp")
    method = deltasam.DeltaSAM(case.model, sigma=1e-2)
    opened: list[Record] = []
    open_record = Record.open
    monkeypatch.setattr(Record, "open", lambda record: (opened.append(record), open_record(record))[1])
    with pytest.warns(RuntimeWarning, match="estimates slopes by a forward pass"):
        assert calls(method, case.closure) == 5  # once more, unwatched, and once to see whether it repeats itself
    assert len(opened) == 1
    assert int(case.model.norm.num_batches_tracked) == 1
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert calls(method, case.closure) == 3
    assert len(opened) == 1  # nothing is recorded any more


def test_a_model_that_is_not_covered_needs_a_loss_per_example() -> None:
    case = cases.make("mlp")
    method = deltasam.DeltaSAM(case.model)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with pytest.raises(ValueError, match="DeltaSAM needs one loss per example"):
                method.backward(lambda: case.closure().mean())


def test_norms_are_never_replaced() -> None:
    case = cases.make("mlp")
    method = deltasam.DeltaSAM(case.model, weights="norms")
    for _ in range(2):
        with pytest.raises(deltasam.NotCoveredError, match="Ways out: weights='slopes'"):
            method.backward(case.closure)
    case.model.norm.eval()
    calls(method, case.closure)  # checked
    assert calls(method, case.closure) == 2


# Estimates.


@pytest.mark.parametrize(("sigma", "warns"), [(1e-7, True), (1e-2, False)])
@pytest.mark.parametrize("weights", ["slopes", "curvature"])
def test_differences_that_are_rounding_are_said(weights: str, sigma: float, warns: bool) -> None:
    case = cases.make("bert", torch.float32)
    _, said = caught(deltasam.DeltaSAM(case.model, weights=weights, sigma=sigma), case.closure)
    assert any("no more than rounding" in words for words in said) == warns


@pytest.mark.parametrize("weights", ["auto", "norms"])
def test_norms_have_no_sigma_to_get_wrong(weights: str) -> None:
    case = cases.make("bert", torch.float32)
    assert caught(deltasam.DeltaSAM(case.model, weights=weights, sigma=1e-30), case.closure)[1] == []


@pytest.mark.parametrize(("weights", "power"), [("norms", -0.5), ("slopes", -0.5), ("curvature", 1)])
def test_weights_of_losses_of_several_sizes(weights: str, power: float) -> None:
    """Losses a_i (w x)^2 have gradients and second differences that grow with a_i: p_i ~ a_i^(-1/2), or a_i^2 / a_i."""
    w = nn.Linear(400, 1, bias=False).double()
    sizes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    x = torch.ones(3, 400, dtype=torch.float64)
    method = deltasam.DeltaSAM(w, weights=weights, sigma=1e-2)
    step = method.backward(lambda: sizes * w(x)[:, 0].square())
    torch.testing.assert_close(step.metrics["weights"], sizes**power / (sizes**power).mean())


def test_no_weight_is_extreme() -> None:
    """A slope counts as a tenth of the mean at least, and no weight is above four times the mean by much."""
    slopes = torch.tensor([1e-30, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    weights = reweight(torch.ones(8), slopes)
    assert weights[0] == weights.max()
    assert float(weights[0] / weights[1]) < 4 * 8
    assert float(weights.mean()) == pytest.approx(1)
    for hopeless in (torch.zeros(8), torch.full((8,), float("nan")), slopes / 0):
        assert (reweight(torch.ones(8), hopeless) == 1).all()


def test_the_noise_is_standard_normal_and_new_every_step() -> None:
    model = nn.Linear(2000, 1500)
    method = deltasam.DeltaSAM(model)
    drawn = []
    for _ in range(2):
        noise = method._store.gaussian(list(model.parameters()), torch.Generator().manual_seed(len(drawn)))
        drawn.append(noise[0].flatten().clone())
    for z in drawn:
        assert abs(z.mean()) < 5e-3
        assert abs(z.std() - 1) < 5e-3
        assert abs((z.abs() > 1.96).double().mean() - 0.05) < 2e-3
    assert abs(torch.corrcoef(torch.stack(drawn))[0, 1]) < 5e-3
    blocks = drawn[0].split(1 << 20)
    assert abs(torch.corrcoef(torch.stack([blocks[0], blocks[1]]))[0, 1]) < 5e-3
