"""Uses that look like others: each is exact, or refused, and never something in between without a word."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from per_instance import assert_exact

N, T, D, C = 4, 8, 5, 3
Forward = Callable[[Any, Tensor], Tensor]


class Written(nn.Module):
    """A model of one function."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self._function = forward
        self.register_buffer("calls", torch.zeros(()))
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def linear(inputs: int = D, outputs: int = C) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape) + 0.5)


def batch(*shape: int, rows: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, *shape, dtype=torch.float64), torch.randint(0, C, (rows,))


def losses_of(x: Tensor, y: Tensor) -> Callable[[Callable[..., Any]], Tensor]:
    return lambda call: F.cross_entropy(call(x), y, reduction="none")


def step(model: nn.Module, x: Tensor, y: Tensor, *, reduction: str = "none") -> deltasam.Step:
    return deltasam.PerInstanceSAM(model, rho=0.5).backward(lambda: F.cross_entropy(model(x), y, reduction=reduction))


# Values that are computed from parameters.


def straight_through(model: Any, x: Tensor) -> Tensor:
    w = model.linear.weight
    with torch.no_grad():
        rounding = torch.round(4 * w) / 4 - w
    return F.linear(x, w + rounding, model.linear.bias)


def standardised(model: Any, x: Tensor) -> Tensor:
    w = model.linear.weight
    previous = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    mean, deviation = w.mean(1, keepdim=True), w.std(1, keepdim=True)
    torch.set_grad_enabled(previous)
    return F.linear(x, (w - mean) / deviation, model.linear.bias)


def list_used_again(model: Any, x: Tensor) -> Tensor:
    parts = [model.scale[None]]
    scale = torch.cat(parts)
    parts[0] = model.scale[None] * 3
    return model.linear(x) * scale


@pytest.mark.parametrize("forward", [straight_through, standardised, list_used_again], ids=lambda f: f.__name__)
def test_computed_as_it_was(forward: Forward) -> None:
    model = Written(forward, linear=linear(), scale=parameter(C))
    model.scale.requires_grad_(forward is list_used_again)
    assert_exact(model, losses_of(*batch(D)))


def test_computed_in_the_precision_that_it_was() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        scale = (model.a @ model.b).mean(0)
        with torch.autocast("cpu", enabled=False):
            return model.linear(x) * scale.float()

    model = Written(forward, a=parameter(D, 4), b=parameter(4, C), linear=linear()).float()
    x, y = batch(D)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x.float()), y)

    plain = float(deltasam.ERM(model).backward(closure).loss)
    found = deltasam.PerInstanceSAM(model, rho=0.0).backward(closure)
    assert float(found.loss) == pytest.approx(plain, abs=1e-6)
    assert float(found.metrics["perturbed_loss"]) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.RMSNorm(6)], ids=lambda n: type(n).__name__)
def test_a_norm_in_a_wider_type_than_the_model(norm: nn.Module) -> None:
    """Its output has the type of its input, as without the engine."""
    model = nn.Sequential(linear(D, 6).bfloat16(), norm.float(), linear(6, C).bfloat16())
    x, y = batch(D)
    if norm(torch.ones(2, 6).bfloat16()).dtype != torch.bfloat16:
        pytest.skip("here PyTorch itself gives the output the type of the weight")
    closure = lambda: F.cross_entropy(model(x.bfloat16()).float(), y)  # noqa: E731
    plain = float(deltasam.ERM(model).backward(closure).loss)
    assert float(deltasam.PerInstanceSAM(model).backward(closure).loss) == pytest.approx(plain, rel=0.02)


def view_written(model: Any, x: Tensor) -> Tensor:
    scale = model.scale.clone()
    scale[:2].add_(1.0)
    return model.linear(x) * scale


def base_written(model: Any, x: Tensor) -> Tensor:
    scale = model.scale * 2
    first = scale[:1]
    scale.add_(1.0)
    return model.linear(x) * first


def buffer_written(model: Any, x: Tensor) -> Tensor:
    scale = model.scale + model.calls
    model.calls += 1
    return model.linear(x) * scale


def read_as_a_number(model: Any, x: Tensor) -> Tensor:
    return model.linear(x).clamp(-model.scale[0].item(), model.scale[0].item()) * model.scale


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (view_written, "scale: or what was computed from it is written into"),
        (base_written, "scale: or what was computed from it is written into"),
        (buffer_written, "scale: mul meets .* changed in place afterwards"),
        (read_as_a_number, "scale: is read as a number"),
    ],
)
def test_what_copies_cannot_follow(forward: Forward, reason: str) -> None:
    with pytest.raises(deltasam.NotCoveredError, match=reason):
        step(Written(forward, linear=linear(), scale=parameter(C)), *batch(D))


def test_memory_is_free_without_a_collection() -> None:
    """Computed values know what they were computed from, and nothing else: no cycle keeps them."""
    model = Written(lambda m, x: F.linear(x, m.w / m.w.norm(dim=1, keepdim=True)), w=parameter(C, D))
    x, y = batch(D)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(o, Tensor) for o in gc.get_objects())
        for _ in range(3):
            step(model, x, y)
        model.zero_grad()
        assert sum(isinstance(o, Tensor) for o in gc.get_objects()) == before
    finally:
        gc.enable()


# Rows that belong to the examples in turn, or not.


def constants_in_the_type_of_the_input(model: Any, x: Tensor) -> Tensor:
    places, _ = torch.meshgrid(torch.arange(T).to(x), torch.arange(2).type_as(x), indexing="ij")
    weights = torch.softmax(-model.scale * places[:, 0], 0)
    return (model.linear(x) * weights[:, None]).sum(1)


def test_constants_stay_constants() -> None:
    assert_exact(
        Written(constants_in_the_type_of_the_input, linear=linear(), scale=parameter(1)), losses_of(*batch(T, D))
    )


def time_first(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.tanh(model.linear(x.transpose(0, 1)))).mean(0)


def one_value_for_each_place(model: Any, x: Tensor) -> Tensor:
    return (model.linear(x) * torch.softmax(model.scale.expand(T), 0)[:, None]).sum(1)


def tokens_in_a_row(model: Any, x: Tensor) -> Tensor:
    chosen = model.linear(x)[torch.arange(N).repeat_interleave(torch.tensor([1, 3, 2, 2])), torch.arange(8) % T]
    return torch.stack([part.mean(0) for part in model.head(chosen).split([1, 3, 2, 2])])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("forward", [time_first, one_value_for_each_place, tokens_in_a_row], ids=lambda f: f.__name__)
def test_rows_of_other_examples(forward: Forward, reduction: str) -> None:
    """Nothing of the model comes after the last use: that its rows are mixed shows in what it returns."""
    parts = {"head": linear(D, C)} if forward is not one_value_for_each_place else {"scale": parameter(1)}
    model = Written(forward, linear=linear(D, D if "head" in parts else C), **parts)
    with pytest.raises(
        deltasam.NotCoveredError, match=r"rows that do not belong to 4 examples in turn|examples interact"
    ):
        step(model, *batch(T, D), reduction=reduction)


class WithLoss(nn.Module):
    """Returns its loss, and what else it is told to."""

    def __init__(self, *, flat: bool, tells: bool) -> None:
        super().__init__()
        self.linear, self.flat, self.tells = linear().double(), flat, tells

    def forward(self, x: Tensor, y: Tensor) -> Any:
        logits = self.linear(x.flatten(0, 1)).view(N, T, C).mean(1) if self.flat else self.linear(x).mean(1)
        loss = F.cross_entropy(logits, y)
        return {"loss": loss, "logits": logits} if self.tells else loss


@pytest.mark.parametrize(("flat", "tells"), [(False, False), (False, True), (True, True), (True, False)])
def test_a_model_that_returns_its_loss(flat: bool, tells: bool) -> None:
    model = WithLoss(flat=flat, tells=tells)
    x, y = batch(T, D)

    def closure() -> Tensor:
        output = model(x, y)
        return output["loss"] if tells else output

    method = deltasam.PerInstanceSAM(model, rho=0.5)
    if flat and not tells:
        with pytest.raises(deltasam.NotCoveredError, match="nothing shows that they belong to 4 examples in turn"):
            method.backward(closure)
    else:
        assert method.backward(closure).metrics["example_norms"].shape == (N,)


def test_the_first_argument_may_have_one_row_for_all() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear().double()

        def forward(self, place: Tensor, x: Tensor) -> Tensor:
            return self.linear(x + place)

    model = Conditioned()
    x, y = batch(D)
    found = deltasam.PerInstanceSAM(model).backward(lambda: F.cross_entropy(model(x[:1] * 0, x), y))
    assert found.metrics["example_norms"].shape == (N,)


@pytest.mark.parametrize("rows", [2, 4, 6, 8])
@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_any_two_examples_that_meet(rows: int, shift: int) -> None:
    """An example and the one some places further on, be their numbers both even or not."""
    if shift % rows == 0:
        pytest.skip("that is the example itself")

    def forward(model: Any, x: Tensor) -> Tensor:
        z = torch.tanh(model.linear(x))
        return model.head(z * torch.sigmoid(model.gate(z.roll(shift, 0))))

    model = Written(forward, linear=linear(D, D), gate=linear(D, D), head=linear())
    with pytest.raises(deltasam.NotCoveredError, match="examples interact inside the model"):
        step(model, *batch(D, rows=rows))


# What shows later.


def test_another_mode_is_looked_at_anew() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        h = model.linear(x)
        return model.head(torch.tanh((h - h.mean(0)) * model.scale if model.training else h * model.scale))

    model = Written(forward, linear=linear(D, D), head=linear(), scale=parameter(D))
    x, y = batch(D)
    method = deltasam.PerInstanceSAM(model, rho=0.5)
    model.eval()
    method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
    model.train()
    with pytest.raises(deltasam.NotCoveredError, match="examples interact inside the model"):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))


def test_a_gate_that_begins_closed_is_found_at_once() -> None:
    """Weights are moved for a look, and the gate with them."""

    def forward(model: Any, x: Tensor) -> Tensor:
        h = model.linear(x)
        return model.head(h + model.gate * h.mean(0, keepdim=True).expand_as(h))

    model = Written(forward, linear=linear(D, D), head=linear(), gate=nn.Parameter(torch.zeros(1)))
    with pytest.raises(deltasam.NotCoveredError, match="examples interact inside the model"):
        step(model, *batch(D))


def test_what_no_use_shows_is_found_at_the_tenth_step() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        h = model.linear(x)
        model.calls += 1
        return model.head(torch.tanh(h - (model.calls > 5) * h.mean(0)))

    model = Written(forward, linear=linear(D, D), head=linear())
    x, y = batch(D)
    method = deltasam.PerInstanceSAM(model, rho=0.05)
    for _ in range(9):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
    with pytest.raises(deltasam.NotCoveredError, match="examples interact inside the model"):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
