"""Average-case sharpness beside its closed form and beside noise that is added by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
from deltasam import reference
from deltasam.diagnostics import AverageSharpness, average_sharpness
from quadratic import EIGENVALUES, EXAMPLES, Quadratic

SIGMA = 0.3


@pytest.mark.parametrize("adaptive", [False, True])
def test_quadratic_in_closed_form(adaptive: bool) -> None:
    """``sigma² / 2 tr H``, or ``sigma² / 2 sum w_i² H_ii``; the scatter is what it must be too."""
    model = Quadratic()
    found = average_sharpness(model, model.closures([5, 7]), sigma=SIGMA, adaptive=adaptive, samples=400)
    unit = model.w.detach().abs() if adaptive else torch.ones_like(model.w)
    hessian = unit[:, None] * model.matrix * unit
    expected = SIGMA**2 / 2 * float(hessian.trace())
    deviation = SIGMA**2 / 2 * math.sqrt(2 * float(hessian.square().sum()))  # of a Gaussian quadratic form
    assert found.standard_error == pytest.approx(deviation / 20, rel=0.2)
    assert abs(found.rise - expected) < 4 * found.standard_error
    assert found.standard_error < 0.1 * expected
    if not adaptive:
        assert expected == pytest.approx(SIGMA**2 / 2 * sum(EIGENVALUES))


def test_what_is_linear_in_the_noise_cancels() -> None:
    """Where the loss is linear nothing is left but rounding, whatever the gradient."""
    model = nn.Linear(4, 1).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"average_sharpness\(sigma=0\.3\).*which rounding could make; raise sigma"):
        found = average_sharpness(model, [lambda: 100 * model(x)[:, 0] + 50], sigma=SIGMA)
    assert abs(found.rise) < 1e-12


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_noise_added_by_hand(adaptive: bool) -> None:
    """With dropout on: the same masks at every place."""
    case = cases.make("bert")
    torch.manual_seed(3)
    losses, w = reference.losses_function(case.model, lambda call: case.run(call, None))
    torch.manual_seed(3)
    found = average_sharpness(case.model, [case.closure], sigma=0.05, adaptive=adaptive, samples=3, seed=11)
    generator = torch.Generator().manual_seed(11)
    before, expected = float(losses(w).detach().mean()), []
    for _ in range(3):
        noise = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in w.items()}
        noise = {k: z * w[k].detach().abs() if adaptive else z for k, z in noise.items()}
        there = [float(losses(reference.moved(w, noise, s)).detach().mean()) for s in (0.05, -0.05)]
        expected.append(statistics.fmean(there) - before)
    assert found.rises == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert found.rise == pytest.approx(statistics.fmean(expected), rel=1e-10)
    assert found.standard_error == pytest.approx(statistics.stdev(expected) / math.sqrt(3), rel=1e-8)
    assert found.loss == pytest.approx(before, rel=1e-12)


def mlp(sizes: list[int]) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    return model, [lambda a=a, b=b: F.cross_entropy(model(a), b, reduction="none") for a, b in parts]


def test_the_cut_of_the_data_does_not_matter_and_the_seed_decides() -> None:
    found = [average_sharpness(*mlp(sizes), sigma=SIGMA).rise for sizes in ([12], [5, 7], [1] * 12)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-12)
    assert average_sharpness(*mlp([12]), sigma=SIGMA).rise == found[0]
    assert average_sharpness(*mlp([12]), sigma=SIGMA, seed=1).rise != found[0]
    torch.manual_seed(9)  # the global random state does not decide
    assert average_sharpness(*mlp([12]), sigma=SIGMA).rise == found[0]


def test_a_frozen_weight_gets_no_noise() -> None:
    model = Quadratic()
    model.other = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    inner = model.closures()[0]
    seen: list[float] = []
    found = average_sharpness(model, [lambda: (seen.append(float(model.other.sum())), inner())[1]], sigma=SIGMA)
    assert set(seen) == {3.0}
    without = Quadratic()
    assert found == average_sharpness(without, without.closures(), sigma=SIGMA)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma": 0}, r"average_sharpness\(sigma=0\): sigma must be a finite number, above 0"),
        ({"samples": 1}, r"average_sharpness\(samples=1\): samples must be a whole number, 2 or more"),
        ({"closures": []}, "average_sharpness.*there is no closure"),
    ],
)
def test_hostile_input(arguments: dict[str, Any], words: str) -> None:
    model, closures = mlp([12])
    with pytest.raises(ValueError, match=words):
        average_sharpness(model, **{"closures": closures, **arguments})


def test_result_can_be_kept_and_read() -> None:
    model = Quadratic()
    found = average_sharpness(model, model.closures(), sigma=SIGMA)
    kept = json.loads(json.dumps(dataclasses.asdict(found)))
    assert AverageSharpness(**{**kept, "rises": tuple(kept["rises"])}) == found
    assert found.examples == EXAMPLES
    assert "4 pairs" in found.reading
    assert "no reliable sign" in found.reading
