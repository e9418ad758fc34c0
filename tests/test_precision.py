"""Autocast, loss scaling, and weights in bfloat16."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from classifier import losses


def test_autocast_around_the_call_does_not_hide_the_perturbation(model: nn.Module, batch: Any) -> None:
    """Inside one autocast block PyTorch keeps low-precision copies of the weights from pass to pass."""

    def gradients(outside: bool) -> list[Tensor]:
        model.zero_grad()
        method = deltasam.SAM(model, rho=1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):

            def closure() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return losses(model, batch)

            method.backward(closure)
        return [p.grad.clone() for p in model.parameters()]

    for around, within in zip(gradients(outside=True), gradients(outside=False), strict=True):
        assert torch.equal(around, within)


@pytest.mark.parametrize("name", deltasam.method_names())
def test_grad_scaler(name: str) -> None:
    """closure = scaler.scale(loss): one unscale, and the step of the unscaled loss."""
    case = cases.make("bert", torch.float32)

    def train(scaler: torch.amp.GradScaler) -> list[Tensor]:
        torch.manual_seed(1)
        twin = cases.copy_of(case.model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        method = deltasam.make_method(name, twin)
        method.follow(optimizer)
        method.backward(lambda: scaler.scale(case.run(twin, None)))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return list(twin.parameters())

    on, off = (train(torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=e)) for e in (True, False))
    for scaled, plain in zip(on, off, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", deltasam.method_names())
def test_pure_bfloat16_shows_in_the_metrics(name: str) -> None:
    case = cases.make("bert", torch.bfloat16)
    model = case.model
    before = [p.detach().clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # delta_sam rightly says that bfloat16 is too coarse
        with_rho = "rho" in deltasam.hyperparameters(deltasam.Method.registry[name])
        method = deltasam.make_method(f"{name}:rho=0.01" if with_rho else name, model)
        method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
        step = method.backward(case.closure)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    if name in ("per_instance_sam", "per_instance_functional_sam"):  # no weight is moved, so none is rounded
        assert float(step.metrics["radius_ratio"]) == pytest.approx(1, abs=1e-6)
    elif "radius_ratio" in step.metrics:  # the weights are not where they should be, and one can see it
        assert abs(float(step.metrics["radius_ratio"]) - 1) > 1e-3


@pytest.mark.parametrize("scale", [2.0**20, 2.0**70, 2.0**110])
@pytest.mark.parametrize("name", deltasam.method_names())
def test_squares_that_leave_the_range_of_float32(name: str, scale: float) -> None:
    """A finite gradient is followed, whatever the loss scale; its squares may be infinite."""
    case = cases.make("bert", torch.float32)
    model = case.model

    def gradients(scale: float) -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        method = deltasam.make_method(name, model)
        method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
        method.backward(lambda: scale * case.closure())
        return [p.grad / scale for p in model.parameters() if p.grad is not None]

    for scaled, plain in zip(gradients(scale), gradients(1.0), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-7)
