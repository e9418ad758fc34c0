"""What a closure may return, and what every method refuses before it starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import deltasam
from classifier import losses
from deltasam.core.closure import example_losses_of, loss_of


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: SimpleNamespace(loss=x), lambda x: {"loss": x}])
def test_every_form_of_a_loss(wrap: Any) -> None:
    w = torch.ones(3, requires_grad=True)
    assert loss_of(wrap(w)).item() == 1.0
    assert loss_of(wrap(w.sum())).item() == 3.0
    assert example_losses_of(wrap(w), "m") is w


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (None, TypeError, "returned NoneType; it must return"),
        (SimpleNamespace(loss=None), TypeError, "were labels given"),
        (1.0, TypeError, "returned float"),
        (torch.ones(2, 2, requires_grad=True), ValueError, r"shape \[2, 2\]"),
        (torch.ones(0, requires_grad=True), ValueError, r"shape \[0\]"),
        (torch.ones(2), ValueError, "does not depend on any trainable weight"),
    ],
)
def test_what_is_no_loss_is_named(output: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        loss_of(output)


@pytest.mark.parametrize("spec", ["delta_sam", "per_instance_sam:unsupported=loop"])
def test_methods_that_need_losses_per_example_say_so(spec: str, model: nn.Module, batch: Any) -> None:
    model.append(nn.BatchNorm1d(3))
    method = deltasam.make_method(spec, model)
    with pytest.raises(ValueError, match=rf"{type(method).__name__}.* needs one loss per example.*reduction='none'"):
        method.backward(lambda: losses(model, batch).mean())


@pytest.mark.parametrize("name", ["erm", "sam", "asam", "per_instance_sam"])
def test_a_scalar_is_enough_for_the_others(name: str, model: nn.Module, batch: Any) -> None:
    method = deltasam.make_method(name, model)
    method.backward(lambda: losses(model, batch).mean())
    scalar = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    method.backward(lambda: losses(model, batch))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), scalar, strict=True))


def test_no_grad_is_refused(model: nn.Module, batch: Any) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"under torch\.no_grad"):
        deltasam.SAM(model).backward(lambda: losses(model, batch))


def test_a_frozen_model_is_refused(model: nn.Module, batch: Any) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        deltasam.SAM(model.requires_grad_(False)).backward(lambda: losses(model, batch))


def test_m_must_divide_the_batch(model: nn.Module, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"m=3.*must divide.*which is 8"):
        deltasam.PerInstanceSAM(model, m=3).backward(lambda: losses(model, batch))


@pytest.mark.parametrize("name", deltasam.method_names())
def test_a_model_whose_copies_draw_their_own_masks_is_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match=r"nn.DataParallel.*use DistributedDataParallel"):
        deltasam.make_method(name, nn.Sequential(nn.DataParallel(nn.Linear(2, 2))))
