"""Forms that hang on lengths and types: exact in each, also where another one was checked; or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
import own_copies
from parts import Model, hidden

RHO = 0.1

pytestmark = pytest.mark.usefixtures("float64")


def of(x: Tensor) -> Callable[[Any], Tensor]:
    """Losses of a batch."""
    y = torch.randint(0, 3, (len(x),))
    return lambda m: F.cross_entropy(m(x).reshape(len(x), -1, 3).mean(1), y, reduction="none")


def error(method: deltasam.PerInstanceSAM, losses: Callable[[Any], Tensor]) -> float:
    """Of a step's gradient, relative."""
    model = method.model
    wanted = own_copies.gradient_of_copies(model, losses, RHO)
    model.zero_grad()
    method.backward(lambda: losses(model))
    return own_copies.error(model, wanted)


def error_of(model: nn.Module, losses: Callable[[Any], Tensor]) -> float:
    return error(deltasam.PerInstanceSAM(model, rho=RHO), losses)


def weight(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=dtype))


def test_a_table_that_is_looked_up_outside_of_the_graph_as_well() -> None:
    """Its gradient for an example is two products where texts are short, and a matrix where they are long."""

    def forward(m: Any, ids: Tensor) -> Tensor:
        with torch.no_grad():
            e = m.table(ids)
        return F.linear(torch.tanh(m.middle(e)), m.table.weight)

    model = Model(forward, table=nn.Embedding(256, 64), middle=nn.Linear(64, 64))
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    for tokens in (4, 64, 8):
        ids, words = (torch.randint(0, 256, (4, tokens)) for _ in range(2))
        assert error(method, lambda m, i=ids, w=words: F.cross_entropy(m(i).mT, w, reduction="none").mean(1)) < 1e-10


def test_a_bias_that_is_used_outside_of_the_graph_as_well() -> None:
    """It has a gradient of its own then, in whatever form that of its weight is."""

    def forward(m: Any, x: Tensor) -> Tensor:
        z = torch.tanh(m.middle(x))
        with torch.no_grad():
            t = torch.tanh(x + 5 * m.middle.bias)
        return m.last(z * t)

    model = Model(forward, middle=nn.Linear(96, 96), last=nn.Linear(96, 3))
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    for tokens in (200, 2, 200):
        assert error(method, of(torch.randn(4, tokens, 96))) < 1e-10


def test_memory_that_every_forward_writes_into() -> None:
    """What went into a layer may not be there any more when the second pass needs it."""
    scratch = torch.zeros(4, 64, 8)

    def forward(m: Any, x: Tensor) -> Tensor:
        h = hidden(m, x)
        z = scratch[:, : x.shape[1]].detach()
        z.copy_(h.detach())
        return m.head(torch.tanh(m.middle(z)) @ m.head.weight) + m.head(h)

    model = Model(forward, middle=nn.Linear(8, 3))
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    for tokens in (60, 2, 60):
        try:
            assert error(method, of(torch.randn(4, tokens, 8))) < 1e-10
        except deltasam.NotCoveredError as refusal:
            assert "has written over" in str(refusal)  # noqa: PT017 - one of the two


@pytest.mark.parametrize("dim", [-2, 0])
def test_another_dimension_is_something_new(dim: int) -> None:
    """Also where Python gives two numbers one hash, as it does -1 and -2."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = hidden(m, x)
        return m.head(h - h.logsumexp(m.dim, keepdim=True))

    model, losses = Model(forward), of(torch.randn(8, 8))
    model.dim = -1
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    assert error(method, losses) < 1e-10
    model.dim = dim
    with pytest.raises(deltasam.NotCoveredError, match="depends on other examples"):
        method.backward(lambda: losses(model))


class Aten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.ops.aten.mul.Tensor(w, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Seen(torch.autograd.Function):
    """What its forward computes is seen, and is another function's result in the graph."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


@pytest.mark.parametrize("where", ["bias", "inside"])
def test_hidden_uses_behind_a_closed_gate(where: str) -> None:
    gate = torch.zeros(())

    def bias(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(F.linear(x, m.enc.weight, Aten.apply(m.p) * gate)) * m.p)

    def inside(m: Any, x: Tensor) -> Tensor:
        h = hidden(m, x)
        return m.head(h * m.p + gate * h * Seen.apply(m.p))

    model = Model({"bias": bias, "inside": inside}[where], p=weight(8))
    with pytest.raises(deltasam.NotCoveredError, match="p: has a gradient that its uses do not explain"):
        error_of(model, of(torch.randn(4, 8)))


def complex_numbers(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.fft.irfft(torch.fft.rfft(hidden(m, x)) * m.p[:5], n=8))


def bias_of_two_axes(m: Any, x: Tensor) -> Tensor:
    return m.head(F.linear(hidden(m, x), m.enc.weight, m.p[None]))


def parameter_of_two_axes(m: Any, x: Tensor) -> Tensor:
    return m.head(F.linear(hidden(m, x), m.enc.weight, m.row))


def weight_and_bias_in_one(m: Any, x: Tensor) -> Tensor:
    return m.head(F.layer_norm(hidden(m, x), (8,), m.p, m.p))


def dropout_of_other_strides(m: Any, x: Tensor) -> Tensor:
    return m.head(F.dropout(m.table * hidden(m, x).mT, 0.4, training=True).mT)


def view_of_other_strides(m: Any, x: Tensor) -> Tensor:
    return m.head((m.table + hidden(m, x).mT).view(4, 48).view(4, 8, 6).mT)


def scaled_by_a_number(m: Any, x: Tensor) -> Tensor:
    return m.head(m.number * hidden(m, x) + m.number)


@pytest.mark.parametrize(
    "forward",
    [complex_numbers, bias_of_two_axes, parameter_of_two_axes, weight_and_bias_in_one, dropout_of_other_strides,
     view_of_other_strides, scaled_by_a_number],
)  # fmt: skip
def test_is_exact(forward: Callable[..., Tensor]) -> None:
    model = Model(forward, p=weight(8), row=weight(1, 8), table=weight(8, 6), number=weight())
    losses = of(torch.randn(4, 6, 8))
    assert error_of(model, losses) < 1e-10
    deltasam.PerInstanceSAM(model, rho=RHO, m=2).backward(lambda: losses(model))  # nor is it refused for pairs


@pytest.mark.parametrize("of_scale", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (128,)])
def test_one_parameter_of_a_wider_type(of_scale: torch.dtype, shape: tuple[int, ...]) -> None:
    model = Model(lambda m, x: (m.middle(x) * m.scale).double(), middle=nn.Linear(128, 128), scale=weight(*shape))
    model.float()
    model.scale = weight(*shape, dtype=of_scale)
    x = torch.randn(4, 256, 128).float()
    assert error_of(model, lambda m: m(x).sin().mean((1, 2))) < 1e-5


def test_a_convolution_in_channels_last_before_a_dropout() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(F.dropout(torch.relu(m.layer(x)), 0.3, training=True).flatten(1))

    model = Model(forward, layer=nn.Conv2d(16, 32, 3), last=nn.Linear(128, 3))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 16, 4, 4).to(memory_format=torch.channels_last)
    deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: F.cross_entropy(model(x), torch.arange(4) % 3))


@pytest.mark.parametrize("scale", [1e-30, 1e25])
@pytest.mark.parametrize("spec", ["sam:rho=0.1", "asam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_any_scale_of_the_loss_cancels(spec: str, scale: float) -> None:
    """In float32, where squares would be 0 or infinite."""
    model, x, y = Model(lambda m, x: m.head(hidden(m, x))).float(), torch.randn(4, 8).float(), torch.arange(4) % 3
    gradients = []
    for factor in (1.0, scale):
        model.zero_grad()
        method = deltasam.make_method(spec, model)
        method.backward(lambda f=factor: f * F.cross_entropy(model(x), y, reduction="none"))
        found = (p.grad for p in model.parameters() if p.grad is not None)
        gradients.append(torch.cat([g.double().flatten() for g in found]) / factor)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


class Straight(nn.Module):
    """A weight through a custom function, with as many rows as there are examples; and a buffer of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.p, self.head = weight(4, 4), weight(6), nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, Seen.apply(self.w.T.contiguous()).T, self.p[1:-1])
        with torch.no_grad():
            self.mean.lerp_(h.mean((0, 1)), 0.5)
        return self.head(torch.tanh(h).mean(1))


@pytest.mark.parametrize("way", ["skip", "loop"])
def test_a_custom_function_gives_no_rows_of_examples(way: str) -> None:
    """What is reported, and what the forward writes into buffers, is what a plain pass gives."""
    model, plain, losses = Straight(), Straight(), of(torch.randn(4, 1, 4))
    plain.load_state_dict(model.state_dict())
    method = deltasam.PerInstanceSAM(model, rho=RHO, unsupported=way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it goes one by one
        step = method.backward(lambda: losses(model))
    torch.testing.assert_close(step.loss, losses(plain).detach().mean())
    torch.testing.assert_close(model.mean, plain.mean)
