"""delta-SAM's estimates: the noise, the second difference, the weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import cases
import deltasam


@pytest.mark.parametrize(("sigma", "warns"), [(1e-7, True), (1e-2, False)])
def test_delta_sam_warns_when_the_second_difference_is_rounding(sigma: float, warns: bool) -> None:
    case = cases.make("bert", torch.float32)
    method = deltasam.DeltaSAM(case.model, sigma=sigma)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.backward(case.closure)
    assert any("no more than rounding" in str(w.message) for w in caught) == warns


def test_delta_sam_weights_grow_with_curvature() -> None:
    """Losses a_i |w|^2 have gradients of size 2 a_i |w| and second differences 2 a_i |d|^2: p_i ~ a_i^2 / a_i."""
    w = nn.Linear(400, 1, bias=False).double()
    sizes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    step = deltasam.DeltaSAM(w, sigma=1e-2).backward(lambda: sizes * w.weight.square().sum())
    torch.testing.assert_close(step.metrics["weights"], sizes / sizes.mean())


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
