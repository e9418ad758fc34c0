"""Per-instance SAM in two batched passes: where it is taken, where it is refused, and that it is exact."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
import deltasam
from deltasam import reference
from deltasam.per_example.record import Record
from deltasam.per_example.rules import Rule
from deltasam.per_example.shift import gradient_norms


def run(
    model: nn.Module, closure: Callable[[], Tensor], **options: Any
) -> tuple[dict[str, Tensor], deltasam.Step, list[str]]:
    """Gradient, step, and the reasons for which it went one example at a time."""
    model.zero_grad()
    torch.manual_seed(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = deltasam.PerInstanceSAM(model, rho=0.3, **options).backward(closure)
    reasons = [str(w.message) for w in caught if "one example at a time" in str(w.message)]
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, step, reasons


def error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    a, b = (
        torch.cat([v.get(n, torch.zeros_like(w)).flatten() for n, w in expected.items()]) for v in (actual, expected)
    )
    return float((a - b).norm() / b.norm())


def expected_gradient(case: cases.Case, m: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(3)
    losses, weights = reference.losses_function(case.model, lambda call: case.run(call, None))
    return reference.per_instance_sam(losses, weights, rho=0.3, m=m)


@pytest.mark.parametrize("m", [1, 2, cases.EXAMPLES])
@pytest.mark.parametrize("name", ["bert", "padded", "lora"])
def test_encoders_take_two_passes(name: str, m: int) -> None:
    case = cases.make(name)
    expected = expected_gradient(case, m)
    calls: list[int] = []
    gradient, _, reasons = run(case.model, lambda: (calls.append(0), case.closure())[1], m=m)
    assert reasons == []
    assert len(calls) == 2
    assert error(gradient, expected) < 1e-10


def test_norms_are_those_of_the_examples() -> None:
    case = cases.make("padded")
    _, step, _ = run(case.model, case.closure)
    torch.manual_seed(3)
    losses, weights = reference.losses_function(case.model, lambda call: case.run(call, None))
    norms = [reference.norm(reference.gradient(losses(weights)[i], weights)) for i in range(cases.EXAMPLES)]
    torch.testing.assert_close(step.metrics["group_grad_norms"], torch.stack(norms))


class Layers(nn.Module):
    """Token ids to scores, through layers that a test may swap."""

    def __init__(self, *, long: bool = False) -> None:
        super().__init__()
        width = 4 if long else 24  # narrow: gradients are formed; wide: T x T products
        self.embedding = nn.Embedding(9, width, padding_idx=0)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.linear(self.norm(self.embedding(ids)))).mean(1))


def layers_case(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor], Callable[..., Tensor]]:
    model.double()
    ids, labels = torch.randint(0, 9, (cases.EXAMPLES, 7)), torch.randint(0, 3, (cases.EXAMPLES,))

    def losses(call: Callable[..., Any]) -> Tensor:
        return F.cross_entropy(call(ids), labels, reduction="none")

    return model, lambda: losses(model), losses


@pytest.mark.parametrize("frozen", ["", "linear.bias", "norm.weight", "norm.bias", "embedding.weight", "linear.weight"])
@pytest.mark.parametrize("long", [False, True])
def test_every_rule_and_every_frozen_part(frozen: str, long: bool) -> None:
    model, closure, losses = layers_case(Layers(long=long))
    if frozen:
        model.get_parameter(frozen).requires_grad_(False)
    function, weights = reference.losses_function(model, losses)
    gradient, _, reasons = run(model, closure)
    assert reasons == []
    assert error(gradient, reference.per_instance_sam(function, weights, rho=0.3, m=1)) < 1e-10


@pytest.mark.parametrize("long", [False, True])
def test_both_routes_of_the_linear_rule_are_taken(long: bool) -> None:
    model, closure, _ = layers_case(Layers(long=long))
    record = Record(model)
    with record.open():
        losses = closure()
    call = next(c for c in record.calls if c.name == "linear")
    record.complete(torch.autograd.grad(losses.sum(), [c.y for c in record.calls]))
    x, b = call.rows(cases.EXAMPLES)
    rows, inputs, outputs = x.shape[1], x.shape[2], b.shape[2]
    assert (rows * (inputs + outputs) < inputs * outputs) is not long
    assert gradient_norms(record, cases.EXAMPLES).shape == (cases.EXAMPLES,)
    assert set(Rule.registry) >= {type(c.layer) for c in record.calls}


class Tied(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(24, 24)
        self.second.weight = self.linear.weight


class Twice(Layers):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + super().forward(ids.flip(1))


class Outside(Layers):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * (1 + self.linear.weight.square().mean())


class Keyword(Layers):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(input=self.norm(self.embedding(ids)).mean(1))


class Unknown(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(24)


class MaxNorm(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 24, scale_grad_by_freq=True)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Tied, "shared between layers"),
        (Twice, "not called exactly once"),
        (Outside, "linear.weight is used outside its layer"),
        (Keyword, "not called exactly once"),
        (Unknown, r"norm \(RMSNorm\) has no rule"),
        (MaxNorm, r"embedding \(Embedding\) has no rule"),
    ],
)
def test_what_no_rule_describes_goes_one_by_one(model: type[nn.Module], reason: str) -> None:
    model, closure, losses = layers_case(model())
    function, weights = reference.losses_function(model, losses)
    gradient, _, reasons = run(model, closure)
    assert len(reasons) == 1
    assert re.search(reason, reasons[0])
    assert error(gradient, reference.per_instance_sam(function, weights, rho=0.3, m=1)) < 1e-10


class Pooler(Layers):
    """Calls a layer whose output nothing uses, as an encoder does whose pooled output is not wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(24, 24)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.linear(self.norm(self.embedding(ids)))
        self.pooler(hidden[:, 0])
        return self.head(torch.tanh(hidden).mean(1))


def test_an_output_that_nothing_uses() -> None:
    model, closure, losses = layers_case(Pooler())
    function, weights = reference.losses_function(model, losses)
    gradient, _, reasons = run(model, closure)
    assert reasons == []
    assert model.pooler.weight.grad is None
    assert error(gradient, reference.per_instance_sam(function, weights, rho=0.3, m=1)) < 1e-10


def test_examples_that_meet_go_one_by_one() -> None:
    model, _, _ = layers_case(Layers())
    ids = torch.randint(1, 9, (cases.EXAMPLES, 7))

    def losses(call: Callable[..., Any]) -> Tensor:
        z = F.normalize(call(ids), dim=1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)), reduction="none")

    function, weights = reference.losses_function(model, losses)
    gradient, _, reasons = run(model, lambda: losses(model))
    assert "depends on another example" in reasons[0]
    assert error(gradient, reference.per_instance_sam(function, weights, rho=0.3, m=1)) < 1e-10


def test_low_precision_goes_one_by_one() -> None:
    model, closure, _ = layers_case(Layers())
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        _, _, reasons = run(model, closure)
    assert "low precision" in reasons[0]


def test_a_zero_gradient_is_no_proof() -> None:
    """A batch without gradient must not pass for a check of the record."""
    model, closure, _ = layers_case(Outside())
    method = deltasam.PerInstanceSAM(model, rho=0.3)
    with pytest.warns(RuntimeWarning, match="cannot be checked"):
        method.backward(lambda: 0 * closure())
    with pytest.warns(RuntimeWarning, match="outside its layer"):
        method.backward(closure)


def test_the_reason_is_given_once() -> None:
    model, closure, _ = layers_case(Twice())
    method = deltasam.PerInstanceSAM(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            method.backward(closure)
    assert len(caught) == 1


def test_one_infinite_example_does_not_touch_the_others() -> None:
    model, closure, _ = layers_case(Layers())
    method = deltasam.PerInstanceSAM(model, rho=0.3)
    method.backward(closure)  # checked
    calls: list[int] = []

    def broken() -> Tensor:
        losses = closure()
        calls.append(0)
        if len(calls) == 1:
            losses.register_hook(lambda g: g * torch.tensor([float("inf"), 1, 1, 1]))
        return losses

    model.zero_grad()
    step = method.backward(broken)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert float(step.metrics["radius_ratio"]) == pytest.approx(0.75)
