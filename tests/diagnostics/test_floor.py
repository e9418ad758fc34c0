"""The floor of fidelity: as low as any weights go, whatever the search starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
from deltasam import reference
from deltasam.diagnostics import fidelity

RHO = 0.5


def three_examples(seed: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A small model, and a batch on which weights matter."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = 2 * torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    return model, lambda: F.cross_entropy(model(x), y, reduction="none")


def lowest_on_a_grid(model: nn.Module, closure: Callable[[], Tensor], steps: int) -> tuple[float, float]:
    """The least error of any weights on a grid, and the error of equal ones, by the equations."""
    w = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}

    def losses(weights: reference.Weights) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(model, weights):
            return closure()

    exact = reference.per_instance_sam(losses, w, rho=RHO, m=1)
    plain = reference.erm(losses, w)
    own = [reference.gradient(losses(w)[i], w) for i in range(3)]

    def error(p: tuple[float, ...]) -> float:
        ascent = {n: sum(share * g[n] for share, g in zip(p, own, strict=True)) for n in w}
        there = reference.erm(losses, reference.moved(w, ascent, reference.step(RHO, ascent)))
        return float(
            reference.norm({n: there[n] - exact[n] for n in w}) / reference.norm({n: plain[n] - exact[n] for n in w})
        )

    grid = [(i / steps, j / steps, (steps - i - j) / steps) for i in range(steps + 1) for j in range(steps + 1 - i)]
    return min(map(error, grid)), error((1.0, 1.0, 1.0))


@pytest.mark.parametrize("seed", range(4))
def test_no_weights_on_a_grid_come_nearer(seed: int) -> None:
    model, closure = three_examples(seed)
    lowest, equal = lowest_on_a_grid(model, closure, 40)
    sam, floor = fidelity(model, closure, "sam", rho=RHO, floor=True)
    assert sam.mean.error == pytest.approx(equal, rel=1e-9)
    assert floor.mean.error <= lowest * 1.02
    assert floor.mean.error >= lowest * 0.95  # between the points of the grid it may be a little lower
    assert floor.mean.distance == pytest.approx(1)


def test_it_is_no_higher_than_weights_that_were_measured() -> None:
    """Whatever the search finds: a good method's weights are where it starts."""
    for seed in range(3):
        model, closure = three_examples(seed)
        *methods, floor = fidelity(model, closure, "delta_sam,rw_sam,delta_sam:weights=norms", rho=RHO, floor=True)
        assert floor.mean.error <= min(m.mean.error for m in methods) * (1 + 1e-9)


def test_it_starts_from_the_best_weights_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.LBFGS, "step", lambda _, look: look())  # a look where it starts, and no search
    for seed in range(3):
        model, closure = three_examples(seed)
        *methods, floor = fidelity(model, closure, "sam,delta_sam,rw_sam:tilt=9", rho=RHO, floor=True)
        sam, *weighted = (m.mean.error for m in methods)
        assert floor.mean.error == pytest.approx(min(sam, *weighted), rel=1e-3)  # no weight is quite 0
        assert abs(weighted[0] - weighted[1]) > 0.01


def test_it_sees_the_masks_and_puts_everything_back() -> None:
    case = cases.make("bert")
    before = [p.detach().clone() for p in case.model.parameters()]
    torch.manual_seed(3)
    random_before = torch.get_rng_state()
    first, second = (fidelity(case.model, case.closure, "sam,delta_sam", rho=RHO, floor=True) for _ in range(2))
    assert first[-1].mean == second[-1].mean
    assert first[-1].mean.error < first[0].mean.error
    assert torch.equal(torch.get_rng_state(), random_before)
    assert all(torch.equal(p, b) for p, b in zip(case.model.parameters(), before, strict=True))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_it_is_no_higher_than_equal_weights(scale: float) -> None:
    """Whatever a method does that has bad ones."""
    for seed in range(3):
        model, closure = three_examples(seed)
        sam, bad, floor = fidelity(model, closure, "sam,rw_sam:tilt=30", rho=scale * RHO, floor=True)
        assert floor.mean.error <= min(sam.mean.error, bad.mean.error) * (1 + 1e-6)


def test_where_there_is_nothing_to_find_it_is_as_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    curved = [lambda: model(x[:1])[:, 0].square()]  # one example: its own perturbation is that of all
    straight = [lambda: model(x)[:, 0]]
    none = [lambda: 0 * model(x)[:, 0]]
    opposite = [lambda: torch.stack([model(x).sum(), -model(x).sum()])]
    broken = [lambda: model(x)[:, 0] * torch.tensor([1.0, float("nan"), 1.0, 1.0], dtype=torch.float64)]
    for closures in (curved, straight, none, opposite, broken):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            sam, floor = fidelity(model, closures, "sam", rho=RHO, floor=True)
        assert floor.mean.error == pytest.approx(sam.mean.error, abs=1e-9, nan_ok=True)


def test_it_needs_a_loss_per_example() -> None:
    model, closure = three_examples(0)
    with pytest.raises(ValueError, match=r"the floor of fidelity needs one loss per example"):
        fidelity(model, lambda: closure().mean(), "sam", rho=RHO, floor=True)


def test_it_is_named_in_results() -> None:
    model, closure = three_examples(0)
    results = fidelity(model, closure, "erm,sam", rho=RHO, floor=True)
    assert [r.method for r in results] == ["erm", "sam:rho=0.5,share=micro-batch", "floor:rho=0.5"]
    assert len(fidelity(model, closure, "erm,sam", rho=RHO)) == 2
