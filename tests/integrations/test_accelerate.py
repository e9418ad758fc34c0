"""Accelerate's loop with a method, its loss scaler, and what it cannot do."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.utils import DistributedType

import deltasam
from deltasam.integrations.accelerate import AccelerateRuntime

SPECS = [
    "erm",
    "sam:rho=0.3",
    "asam:rho=0.3",
    "per_instance_sam:rho=0.3",
    "delta_sam:rho=0.3,weights=norms",
    "delta_sam:rho=0.3,weights=slopes",
    "friendly_sam:rho=0.3",
    "sam:rho=0.3@every=2",
]
APART = ["erm", "per_instance_sam:rho=0.3", "per_instance_sam:rho=0.3,m=4"]
"""What does not depend on how the batch is cut."""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.0), nn.Tanh(), nn.Linear(8, 4)).double()


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 3, generator=g).double(), torch.randint(4, (16,), generator=g)) for _ in range(3)]


def accelerated(spec: str, count: int, scaler: Any = None) -> tuple[nn.Module, list[deltasam.Step]]:
    """Three optimizer steps, each over so many micro-batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=count)
    accelerator.scaler = scaler
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    method = deltasam.make_method(spec, accelerator.unwrap_model(model))
    method.follow(optimizer)
    runtime, steps = AccelerateRuntime(accelerator), []
    for x, y in data():
        for a, b in zip(x.chunk(count), y.chunk(count), strict=True):
            with accelerator.accumulate(model):
                losses = lambda a=a, b=b: F.cross_entropy(model(a), b, reduction="none")  # noqa: E731
                steps.append(method.backward(losses, runtime=runtime))
                if accelerator.sync_gradients:
                    if scaler is not None:
                        scaler.unscale_(optimizer.optimizer)  # Accelerate does it where it made the scaler itself
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model), steps


def bare(spec: str, count: int) -> tuple[nn.Module, list[deltasam.Step]]:
    """The same without Accelerate."""
    model = net()
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=0.1), []
    method = deltasam.make_method(spec, model)
    method.follow(optimizer)
    for x, y in data():
        for a, b in zip(x.chunk(count), y.chunk(count), strict=True):
            steps.append(method.backward(lambda a=a, b=b: F.cross_entropy(model(a), b, reduction="none") / count))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, steps


def assert_close(a: nn.Module, b: nn.Module, tolerance: float) -> None:
    x, y = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b))
    error = float((x - y).norm() / y.norm())
    assert error <= tolerance


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("count", [1, 4])
def test_equals_the_bare_loop(spec: str, count: int) -> None:
    assert_close(accelerated(spec, count)[0], bare(spec, count)[0], 1e-12)


@pytest.mark.parametrize("spec", APART)
def test_one_batch_two_halves_or_four_quarters_are_the_same(spec: str) -> None:
    whole = accelerated(spec, 1)[0]
    for count in (2, 4):
        assert_close(accelerated(spec, count)[0], whole, 1e-10)


def test_a_cut_batch_has_other_perturbations() -> None:
    with pytest.raises(AssertionError):
        assert_close(accelerated("sam:rho=0.3", 4)[0], accelerated("sam:rho=0.3", 1)[0], 1e-6)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("spec", [*SPECS, "per_instance_sam:rho=0.3,m=2"])
def test_a_loss_scaler(spec: str, count: int) -> None:
    """As Accelerate makes it on a GPU: gradients are of the scaled loss until they are clipped, metrics never are."""
    scaled, steps = accelerated(spec, count, torch.amp.GradScaler("cpu", init_scale=1024.0))
    plain, wanted = accelerated(spec, count)
    assert_close(scaled, plain, 1e-10)
    for step, expected in zip(steps, wanted, strict=True):
        assert step.metrics.keys() == expected.metrics.keys()
        for key, value in expected.metrics.items():
            torch.testing.assert_close(step.metrics[key], value, rtol=1e-9, atol=1e-12)


def test_an_overflow_skips_the_step() -> None:
    """The method's schedule counts the steps that were taken."""
    accelerator = Accelerator(cpu=True)
    scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    method = deltasam.make_method("sam:rho=0.3@every=2", model)
    method.follow(optimizer)
    before = copy.deepcopy(model.state_dict())
    x, y = data()[0]
    for factor, counted in ((float("inf"), 0), (1.0, 1)):
        method.backward(lambda f=factor: f * F.cross_entropy(model(x), y), runtime=AccelerateRuntime(accelerator))
        optimizer.step()
        optimizer.zero_grad()
        assert method.state_dict()["steps"] == counted
        same = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert same == (counted == 0)
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("spec", ["friendly_sam:rho=0.3", "friendly_sam:rho=0.3@every=2"])
def test_saved_and_resumed(spec: str, tmp_path: Path) -> None:
    """``register_for_checkpointing`` takes a method as it is."""

    def train(steps: slice) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        method = deltasam.make_method(spec, accelerator.unwrap_model(model))
        method.follow(optimizer)
        accelerator.register_for_checkpointing(method)
        if steps.start:
            accelerator.load_state(str(tmp_path))
        for x, y in data()[steps]:
            method.backward(lambda x=x, y=y: F.cross_entropy(model(x), y), runtime=AccelerateRuntime(accelerator))
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state(str(tmp_path))
        return model

    unbroken = train(slice(0, 3))
    train(slice(0, 1))
    resumed = train(slice(1, 3))
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), unbroken.parameters(), strict=True))


def fake(**changes: Any) -> Any:
    plain = {"scaler": None, "distributed_type": DistributedType.NO, "is_fsdp2": False, "has_lomo_optimizer": False}
    return SimpleNamespace(**{**plain, "_models": [], "_optimizers": [], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distributed_type": DistributedType.DEEPSPEED},
            "DEEPSPEED runs backward and optimizer in its own engine.*use DDP",
        ),
        ({"distributed_type": DistributedType.MEGATRON_LM}, "MEGATRON_LM runs backward and optimizer.*use DDP"),
        ({"distributed_type": DistributedType.FSDP}, "FSDP version 1 flattens the weights; use FSDP2"),
        ({"has_lomo_optimizer": True}, "LOMO steps each weight during the backward.*use another optimizer"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    AccelerateRuntime(fake())
    AccelerateRuntime(fake(distributed_type=DistributedType.FSDP, is_fsdp2=True))
    with pytest.raises(NotImplementedError, match=message):
        AccelerateRuntime(fake(**changes))


def test_the_ascent_is_of_the_scaled_loss_too() -> None:
    """In float16 small gradients would be 0 in the first pass already."""
    w = torch.ones((), requires_grad=True)
    runtime = AccelerateRuntime(fake(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)))
    assert runtime.grad(3 * w, [w]) == [torch.tensor(3 * 1024.0)]


class LossWithScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.scale = net(), nn.Parameter(torch.ones(3))


def test_parameters_that_no_prepared_model_holds_are_refused() -> None:
    """They would be trained, but not perturbed."""
    accelerator = Accelerator(cpu=True)
    loss = LossWithScale()
    accelerator.prepare(loss.model, torch.optim.SGD(loss.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"the method's model does not hold \(one of shape \[3\]\)"):
        AccelerateRuntime(accelerator)
    AccelerateRuntime(accelerator, model=loss)
    accelerator.free_memory()
    accelerator.prepare(loss, torch.optim.SGD(loss.parameters(), lr=0.1))
    AccelerateRuntime(accelerator)
