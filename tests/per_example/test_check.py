"""What an adversary found: each is exact, beside a deep copy of the model per example, or refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
import own_copies
from deltasam.core.torch_internals.modes import checkpoint_region
from deltasam.per_example import outer_products as outer
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.outer_products import GramCache
from deltasam.per_example.perturbed_forward import Perturbed
from parts import C, D, Model, hidden

N, T = 4, 6
RHO = 0.1

pytestmark = pytest.mark.usefixtures("float64")


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64).squeeze())


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class OfTheBatch(torch.autograd.Function):
    """Examples interact in the backward only, and not linearly."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / gradients[0].norm()


class Clipped(torch.autograd.Function):
    """Linear while gradients are small: nothing shows at the size that they have today."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(-30, 30)


class Recomputed(torch.autograd.Function):
    """A checkpoint that runs a backward of its own."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, h: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(h.detach())
        with torch.no_grad():
            return layer(h)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None]:
        h = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.layer(h), gradients[0])
        return None, h.grad


Forward = Callable[..., Any]
EXACT: dict[str, tuple[Forward, dict[str, Any]]] = {}
REFUSED: dict[str, tuple[Forward, dict[str, Any], str]] = {}


def exact(**parts: Any) -> Callable[[Forward], Forward]:
    def register(forward: Forward) -> Forward:
        EXACT[forward.__name__] = forward, parts
        return forward

    return register


def refused(reason: str, **parts: Any) -> Callable[[Forward], Forward]:
    def register(forward: Forward) -> Forward:
        REFUSED[forward.__name__] = forward, parts, reason
        return forward

    return register


@exact()
def second_head_on_detached(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    return m.head(h) + m.aux(h.detach())


@exact()
def gradient_reversal(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    return m.head(h) + m.aux(Reverse.apply(h))


@exact()
def layer_also_used_detached(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    return m.head(h) + F.linear(h, m.head.weight.detach(), m.head.bias.detach()) ** 2


@exact(table=nn.Parameter(torch.randn(5, D, dtype=torch.float64)))
def padding_of_a_computed_table(m: Any, x: Tensor) -> Tensor:
    ids = (x[..., 0].abs() * 3).long().clamp(max=4)
    return m.head(torch.tanh(F.embedding(ids, 1.1 * m.table, padding_idx=0)).mean(1))


@exact(token=nn.Parameter(torch.randn(D, dtype=torch.float64)))
def dropout_in_place_of_a_parameter(m: Any, x: Tensor) -> Tensor:
    token = 2 * m.token
    F.dropout(token, 0.4, True, inplace=True)
    return m.head(hidden(m, x) + token)


@exact(token=nn.Parameter(torch.randn(D, dtype=torch.float64)))
def noise_on_a_parameter(m: Any, x: Tensor) -> Tensor:
    return m.head(hidden(m, x) + m.token + 0.3 * torch.randn_like(m.token))


@exact(kernel=nn.Parameter(torch.randn(D, 1, 2, D // 2, dtype=torch.float64)))
def shared_bias(m: Any, x: Tensor) -> Tensor:
    """By a linear layer and by a convolution that sees all of an example at once."""
    picture = x.reshape(len(x), 1, 2, D // 2)
    return m.head(hidden(m, x) + F.conv2d(picture, m.kernel, m.enc.bias).flatten(1))


@exact(first=nn.Parameter(torch.rand(D, dtype=torch.float64)), second=nn.Parameter(torch.rand(D, dtype=torch.float64)))
def two_norms(m: Any, x: Tensor) -> Tensor:
    """Alike in all but what they are told."""
    h = F.layer_norm(hidden(m, x), (D,), m.first, None, 1e-5)
    return m.head(F.layer_norm(h, (D,), m.second, None, 1.0))


@exact(w=nn.Parameter(torch.randn(D, C, dtype=torch.float64)))
def product_into_a_tensor(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    with torch.no_grad():
        m.state = torch.empty(0)
        torch.mm(h, m.w, out=m.state)
    return h @ m.w * m.state.sigmoid()


@refused("enc.weight: has a gradient that its uses do not explain: a function that PyTorch does not show")
def straight_through_weight(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(F.linear(x, Sign.apply(m.enc.weight))))


@refused(r"enc.weight, enc.bias: has a gradient that its uses do not explain: .* a backward inside the backward")
def backward_inside_the_backward(m: Any, x: Tensor) -> Tensor:
    return m.head(Recomputed.apply(m.enc, m.aux(x).sum(1, keepdim=True) * x))


@refused("token: alpha_dropout draws random numbers for it", token=nn.Parameter(torch.randn(D, dtype=torch.float64)))
def alpha_dropout_of_a_parameter(m: Any, x: Tensor) -> Tensor:
    return m.head(hidden(m, x) + F.alpha_dropout(2 * m.token, 0.4, True))


@refused("gate: is read as a number", gate=parameter(0.301))
def branch_on_a_parameter(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    return m.head((3 * h if m.gate > 0.3 else h) * m.gate)


@refused("gate: is read as a number", gate=parameter(0.301))
def comparison_of_a_parameter(m: Any, x: Tensor) -> Tensor:
    return m.head(hidden(m, x) * (1 + torch.allclose(m.gate, m.gate.detach())) * m.gate)


@refused("the norm of one example's gradient|is not the sum of the gradients")
def hook_that_is_not_linear(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    if h.requires_grad:
        h.register_hook(lambda g: g / (1 + g.norm(dim=1, keepdim=True)))
    return m.head(h)


@refused("the norm of one example's gradient|is not the sum of the gradients")
def backward_that_is_not_linear(m: Any, x: Tensor) -> Tensor:
    return m.head(Clipped.apply(hidden(m, x)))


@refused("t: __getitem__ gives as many values as its values say", t=parameter(*[0.101] * D))
def branch_on_a_count(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x) * m.t
    return m.head(h * 2 if len(m.t[m.t > 0.1]) else h)


@refused("t: nonzero gives as many values as its values say", t=parameter(*[0.101] * D))
def branch_on_places(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x) * m.t
    return m.head(h * 2 if (m.t > 0.1).nonzero().shape[0] else h)


@refused("t: is used inside a transform of torch.func", t=parameter(0.101))
def mapped_by_the_model(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.func.vmap(lambda row: row * m.t)(hidden(m, x)))


@refused("t: the forward pass writes into its memory", t=parameter(0.101))
def data_written(m: Any, x: Tensor) -> Tensor:
    m.t.data.clamp_(0.1, 0.5)
    return m.head(hidden(m, x)) / m.t


@refused("t: the forward pass writes into its memory", t=parameter(0.101))
def detached_written(m: Any, x: Tensor) -> Tensor:
    m.t.detach().mul_(1.0)
    return m.head(hidden(m, x)) / m.t


@refused("cls: cat puts it among the rows", cls=nn.Parameter(torch.randn(1, D, dtype=torch.float64)))
def put_before_the_rows(m: Any, x: Tensor) -> Tensor:
    h = torch.cat([m.cls, m.enc(x)])
    return m.head(torch.softmax(h @ h.T, -1) @ h)[1:]


@refused("head.weight, head.bias: what meets it depends on other examples: examples interact")
def quantised_over_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.enc(x)
    s = h.detach().abs().max() / 7
    return m.head(torch.tanh(h + ((h / s).round() * s - h).detach()))


@refused("head.weight, head.bias: what meets it depends on other examples: examples interact")
def mixed_statistics(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    mean, deviation = h.mean(1, keepdim=True).detach(), h.std(1, keepdim=True).detach()
    others = [1, 2, 3, 0]
    return m.head((h - mean) / deviation * (deviation + deviation[others]) / 2 + (mean + mean[others]) / 2)


@refused("the model: the norm of one example's gradient|is not the sum of the gradients")
def hook_that_looks_at_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.enc(x)
    if h.requires_grad:
        h.register_hook(lambda g: g / g.norm())
    return m.head(torch.tanh(h))


@refused("the model: the norm of one example's gradient|is not the sum of the gradients")
def backward_that_looks_at_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(OfTheBatch.apply(m.enc(x))))


@refused(r"the model: the closure gives another result when it is run again.*deltasam.in_later_pass\(\)")
def state_in_an_attribute(m: Any, x: Tensor) -> Tensor:
    m.state = torch.tanh(m.enc(x if m.state is None else x + m.state)).detach()
    return m.head(torch.tanh(m.enc(x + m.state)))


def problem(name: str) -> tuple[Model, Callable[[Any], Tensor]]:
    torch.manual_seed(0)
    forward, parts = (EXACT.get(name) or REFUSED[name])[:2]
    model = Model(forward, **{k: v if v is None else nn.Parameter(v.detach().clone()) for k, v in parts.items()})
    x, y = torch.randn(N, D), torch.randint(0, C, (N,))
    shape = (N, T, D) if name == "padding_of_a_computed_table" else (N, D)
    x = torch.randn(shape)
    return model, lambda m: F.cross_entropy(m(x), y, reduction="none")


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", EXACT)
def test_is_exact(name: str, reduction: str) -> None:
    model, losses = problem(name)
    torch.manual_seed(5)
    wanted = own_copies.gradient_of_copies(model, losses, RHO)
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    for _ in range(2):  # checked, and not checked
        model.zero_grad()
        torch.manual_seed(5)
        method.backward(lambda: losses(model) if reduction == "none" else losses(model).mean())
        assert own_copies.error(model, wanted) < 1e-10


@pytest.mark.parametrize("spec", ["per_instance_sam", "delta_sam:weights=norms", "rw_sam:weights=norms"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_every_method(name: str, reduction: str, spec: str) -> None:
    model, losses = problem(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(deltasam.NotCoveredError, match=REFUSED[name][2]):
        deltasam.make_method(spec, model).backward(
            lambda: losses(model) if reduction == "none" else losses(model).mean()
        )
    if "written" not in name:
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_norms_are_refused(name: str) -> None:
    model, losses = problem(name)
    with pytest.raises(deltasam.NotCoveredError, match=REFUSED[name][2]):
        deltasam.per_example_grad_norms(model, lambda: losses(model))


# Where a closure is no function of the weights, or a backward no linear one of its gradient, no reference says more.
LOOPS = [n for n in REFUSED if not n.startswith(("state", "data", "hook", "backward_that", "detached_written"))]


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_runs_the_closure_as_it_is(name: str) -> None:
    model, losses = problem(name)
    torch.manual_seed(5)
    wanted = own_copies.gradient_of_copies(model, losses, RHO)
    method = deltasam.PerInstanceSAM(model, rho=RHO, unsupported="loop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            model.zero_grad()
            torch.manual_seed(5)
            method.backward(lambda: losses(model))
            assert own_copies.error(model, wanted) < 1e-10


# What is new is checked when it appears.


def steps(model: nn.Module, *runs: Callable[[Any], Tensor], reason: str) -> None:
    """All runs but the last are exact, which is refused."""
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    for losses in runs[:-1]:
        wanted = own_copies.gradient_of_copies(model, losses, RHO)
        model.zero_grad()
        method.backward(lambda losses=losses: losses(model))  # type: ignore[misc]
        assert own_copies.error(model, wanted) < 1e-10
    with pytest.raises(deltasam.NotCoveredError, match=reason):
        method.backward(lambda: runs[-1](model))


def chosen_rows(m: Any, x: Tensor, chosen: Tensor) -> Tensor:
    return m.head(hidden(m, x)[chosen])


def of_counts(*counts: int, by: str) -> Callable[[Any], Tensor]:
    x, y = torch.randn(N, T, D), torch.randint(0, C, (N,))
    mask = torch.stack([torch.arange(T) < c for c in counts])
    own = mask.nonzero()[:, 0]

    def losses(m: Any) -> Tensor:
        scores = m(x, mask) if by == "mask" else m(x.flatten(0, 1), mask.flatten().nonzero()[:, 0])
        return torch.zeros(N).index_add(0, own, F.cross_entropy(scores, y[own], reduction="none"))

    return losses


@pytest.mark.parametrize("by", ["mask", "index"])
def test_other_counts_of_chosen_rows(by: str) -> None:
    equal = of_counts(2, 2, 2, 2, by=by), of_counts(2, 2, 2, 2, by=by)
    steps(Model(chosen_rows), *equal, of_counts(1, 3, 3, 1, by=by), reason="examples interact inside the model")


def test_another_order_of_rows() -> None:
    def forward(m: Any, x: Tensor, order: Tensor) -> Tensor:
        return m.head(hidden(m, x)[order])

    x, y = torch.randn(N, D), torch.randint(0, C, (N,))

    def ordered(*order: int) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, torch.tensor(order)), y[list(order)], reduction="none")

    steps(Model(forward), ordered(0, 1, 2, 3), ordered(1, 2, 3, 0), reason="examples interact inside the model")


def interacts_later(forward: Callable[..., Any], harmless: object, mixing: object, n: int = N) -> None:
    """A forward that is told something else after the checked step: then the examples interact."""
    x, y = torch.randn(n, D), torch.randint(0, C, (n,))

    def of(told: object) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, told), y, reduction="none")

    steps(Model(forward), of(harmless), of(mixing), reason="examples interact inside the model")


TOLD: dict[str, tuple[Callable[[Tensor, Any], Tensor], object, object]] = {
    "softmax(dim=)": (lambda h, k: torch.softmax(h, dim=k), 1, 0),
    "roll(shifts=)": (lambda h, k: torch.roll(h, shifts=k, dims=0), 0, 1),
    "roll by all": (lambda h, k: torch.roll(h, k, 0), 3 * N, 3 * N + 1),
    "flip((k,))": (lambda h, k: h.flip((k,)), 1, 0),
    "mean(dim=)": (lambda h, k: h - h.mean(dim=k, keepdim=True), 1, 0),
    "cumsum(dim=)": (lambda h, k: h.cumsum(dim=k), 1, 0),
    "normalize(dim=)": (lambda h, k: F.normalize(h, dim=k), 1, 0),
    "batch_norm(training=)": (lambda h, k: F.batch_norm(h, torch.zeros(D), torch.ones(D), training=k), False, True),
    "mixup": (lambda h, k: (1 - k) * h + k * h.flip(0), 0.0, 0.3),
    "stack of rows": (lambda h, k: torch.stack([h[i, :] for i in k]), [0, 1, 2, 3], [1, 2, 3, 0]),
    "stack of pieces": (lambda h, k: torch.stack([h.unbind(0)[i] for i in k]), [0, 1, 2, 3], [1, 2, 3, 0]),
    "select": (lambda h, k: torch.stack([h.select(dim=0, index=i) for i in k]), [0, 1, 2, 3], [1, 2, 3, 0]),
    "narrow": (lambda h, k: torch.cat([h.narrow(0, i, 1) for i in k]), [0, 1, 2, 3], [1, 2, 3, 0]),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_function_that_is_told_something_else(name: str) -> None:
    function, harmless, mixing = TOLD[name]
    interacts_later(lambda m, x, told: m.head(function(hidden(m, x), told)), harmless, mixing)


def test_pieces_of_other_lengths() -> None:
    def forward(m: Any, x: Tensor, lengths: list[int]) -> Tensor:
        h = m.enc(torch.cat([row[:k] for row, k in zip(x, lengths, strict=True)]))
        return torch.stack([piece.mean(0) for piece in m.head(h).split(lengths)])

    x, y = torch.randn(N, T, D), torch.randint(0, C, (N,))

    def of(*lengths: int) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, list(lengths)), y, reduction="none")

    steps(Model(forward), of(2, 2, 2, 2), of(1, 3, 3, 1), reason="do not belong to 4 examples in turn|interact")


def test_another_task() -> None:
    def forward(m: Any, x: Tensor, task: int) -> Tensor:
        h = hidden(m, x)
        return m.head(h) if task == 0 else m.aux(3 * (h - h.mean(0)))

    x, y = torch.randn(N, D), torch.randint(0, C, (N,))

    def of(task: int) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, task), y, reduction="none")

    steps(Model(forward), of(0), of(0), of(1), reason="aux.weight, aux.bias: what meets it depends on other examples")


def test_a_hook_that_comes_later() -> None:
    def forward(m: Any, x: Tensor, hooks: bool) -> Tensor:
        h = hidden(m, x)
        if hooks:
            h.register_hook(lambda g: g / g.norm())
        return m.head(h)

    x, y = torch.randn(N, D), torch.randint(0, C, (N,))

    def of(hooks: bool) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, hooks), y, reduction="none")

    steps(
        Model(forward), of(False), of(True), reason="the norm of one example's gradient|is not the sum of the gradients"
    )


def test_rows_that_are_sorted_by_the_weights() -> None:
    """In the first pass they are in order as they are, and with moved weights in another one."""

    def of(gap: float) -> Callable[[Any], Tensor]:
        x = torch.randn(N, D)
        x[:, 0] = gap * torch.arange(N)
        return lambda m: F.cross_entropy(m(x), torch.arange(N) % C, reduction="none") * torch.tensor([1.0, 9, 1, 1])

    def sorting(m: Any, x: Tensor) -> Tensor:
        order = m.enc(x)[:, 0].argsort()
        return m.head(hidden(m, x)[order])[order.argsort()]

    model = Model(sorting)
    with torch.no_grad():
        model.enc.weight[0] = 0
        model.enc.weight[0, 0] = 1
    wide, narrow = of(9.0), of(1e-3)
    steps(model, wide, wide, narrow, reason="which rows it picks, or in which order it puts them, changes")


def test_a_parameter_is_left_out_again() -> None:
    """It was frozen for a step in between; what was checked with it left out holds for that only."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(hidden(m, x) * Sign.apply(m.t) * torch.ones(D))

    model, (x, y) = Model(forward, t=parameter(0.4)), (torch.randn(N, D), torch.randint(0, C, (N,)))
    method = deltasam.PerInstanceSAM(model, rho=RHO, unsupported="skip")
    found = []
    for trained in (True, True, False, True, True):
        model.t.requires_grad_(trained)
        model.zero_grad()
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
        found.append(torch.cat([p.grad.flatten() for p in (*model.enc.parameters(), *model.head.parameters())]))
    assert all((f - found[0]).norm() < 1e-12 * found[0].norm() for f in found)
    assert method._engine._skipped.keys() == {"t"}


def test_a_parameter_left_out_of_a_sum() -> None:
    """Its uses would tell that the examples meet in the backward; without them nothing but the sum does."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.enc(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * (g.abs() > g.abs().mean()))
        return m.head(torch.tanh(h))

    model, (x, y) = Model(forward), (torch.randn(N, D), torch.randint(0, C, (N,)))
    method = deltasam.PerInstanceSAM(model, rho=RHO, unsupported="skip")
    with pytest.raises(deltasam.NotCoveredError, match="is not the sum of the gradients of its examples"):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))


def test_thin_uses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of which one token is read: its other rows have no gradient, and later steps do not look for it anew."""
    monkeypatch.setattr(outer, "SMALL", 0)

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(hidden(m, x)[:, 0])

    model, (x, y) = Model(forward), (torch.randn(N, T, D), torch.randint(0, C, (N,)))
    method, found = deltasam.PerInstanceSAM(model, rho=RHO), []
    for _ in range(2):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
        found.append(dict(method._engine._checked.behaviours))
    assert found[0] == found[1]
    assert [known.thin for known in found[0].values()] == [frozenset([0])]


def test_what_is_known_is_not_checked_again() -> None:
    """Batches of other lengths, sizes and positions that are picked, as a classifier of the last token has them."""

    def forward(m: Any, x: Tensor, last: Tensor) -> Tensor:
        return m.head(hidden(m, x)[torch.arange(len(x)), last])

    model, calls = Model(forward), []
    method = deltasam.PerInstanceSAM(model, rho=RHO)

    def forwards(n: int, tokens: int) -> int:
        calls.clear()
        x, y, last = torch.randn(n, tokens, D), torch.randint(0, C, (n,)), torch.randint(0, tokens, (n,))
        method.backward(lambda: (calls.append(0), F.cross_entropy(model(x, last), y, reduction="none"))[1])
        return len(calls)

    assert forwards(4, 6) > 2
    assert [forwards(n, tokens) for n, tokens in ((4, 6), (4, 5), (6, 9), (3, 7))] == [2] * 4


def test_one_example_is_checked_once() -> None:
    model, calls = Model(lambda m, x: m.head(hidden(m, x))), []
    x, y = torch.randn(1, D), torch.randint(0, C, (1,))
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    for _ in range(3):
        calls.clear()
        method.backward(lambda: (calls.append(0), F.cross_entropy(model(x), y))[1])
    assert len(calls) == 2


# The check shares nothing with what it checks: an engine that is wrong is refused, wherever it is wrong.


def wrong_place_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> str:
    """Products that are kept by their memory: right values, wrong gradients, and only where weights have moved."""
    kept: dict[tuple[object, ...], tuple[Any, ...]] = {}

    def by_memory(
        self: GramCache, p: Tensor, q: Tensor, *, ones: bool = False, factors: Tensor | None = None
    ) -> Tensor:
        key = (p.data_ptr(), p.shape, p._version, q.data_ptr(), ones, id(factors), torch.is_grad_enabled())
        if key not in kept:
            product = p @ q.mT + ones
            kept[key] = product if factors is None else product * factors[:, None, None], p, q, factors
        return kept[key][0]

    monkeypatch.setattr(outer, "SMALL", 0)
    monkeypatch.setattr(GramCache, "__call__", by_memory)
    return "second_head_on_detached"


def wrong_norms(monkeypatch: pytest.MonkeyPatch) -> str:
    true = ExampleGradients.norms
    monkeypatch.setattr(ExampleGradients, "norms", lambda self: true(self) * torch.linspace(1, 1.01, self.groups))
    return "gradient_reversal"


def wrong_totals(monkeypatch: pytest.MonkeyPatch) -> str:
    true = ExampleGradients._total
    monkeypatch.setattr(
        ExampleGradients, "_total", lambda self, p: None if true(self, p) is None else 1.1 * true(self, p)
    )
    return "gradient_reversal"


def wrong_second_pass(monkeypatch: pytest.MonkeyPatch) -> str:
    true = Perturbed.product
    monkeypatch.setattr(Perturbed, "product", lambda self, run, product: true(self, run, product) * (1 + 1e-5))
    return "gradient_reversal"


def wrong_movement(monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights that are moved too far, in the second pass."""
    true = ExampleGradients.scale
    monkeypatch.setattr(ExampleGradients, "scale", lambda self, factors, **how: true(self, factors * (1 + 1e-5), **how))
    return "gradient_reversal"


def wrong_examples(monkeypatch: pytest.MonkeyPatch) -> str:
    """Every example moves as its neighbour should."""
    true = ExampleGradients.scale

    def scale(self: ExampleGradients, factors: Tensor, **how: bool) -> None:
        true(self, factors, **how)
        rolled = {
            k: replace(g, outers=tuple(replace(t, b=t.b.roll(1, 0)) for t in g.outers)) for k, g in self.of.items()
        }
        self.of = {k: g if g.dense is None else replace(g, dense=g.dense.roll(1, 0)) for k, g in rolled.items()}

    monkeypatch.setattr(ExampleGradients, "scale", scale)
    return "gradient_reversal"


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(
    "sabotage",
    [wrong_place_in_the_graph, wrong_norms, wrong_totals, wrong_second_pass, wrong_movement, wrong_examples],
    ids=lambda f: f.__name__,
)
def test_a_wrong_engine_is_refused(sabotage: Any, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sabotage is wrong_place_in_the_graph and checkpoint_region() is not None:
        pytest.skip("this PyTorch does not tell checkpointed regions apart, so products are not kept (before 2.8)")
    model, losses = problem(sabotage(monkeypatch))
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    with pytest.raises(deltasam.NotCoveredError):
        method.backward(lambda: losses(model) if reduction == "none" else losses(model).mean())
    assert all(p.grad is None for p in model.parameters())


# What has no gradient, or no part, in the first step.


def trained(model: nn.Module, losses: Callable[[Any], Tensor], steps: int = 4) -> list[float]:
    """The errors of some steps of training."""
    method, optimizer = deltasam.PerInstanceSAM(model, rho=RHO), torch.optim.SGD(model.parameters(), lr=0.5)
    errors = []
    for _ in range(steps):
        wanted = own_copies.gradient_of_copies(model, losses, RHO)
        model.zero_grad()
        method.backward(lambda: losses(model))
        errors.append(own_copies.error(model, wanted))
        optimizer.step()
    return errors


def of_batch(model: nn.Module, n: int = N) -> Callable[[Any], Tensor]:
    x, y = torch.randn(n, D), torch.randint(0, C, (n,))
    return lambda m: F.cross_entropy(m(x), y, reduction="none")


@pytest.mark.parametrize("n", [N, 12])
def test_behind_a_head_that_begins_at_zero(n: int) -> None:
    model = Model(lambda m, x: m.head(torch.tanh(hidden(m, x) - hidden(m, x).mean(0))))
    nn.init.zeros_(model.head.weight)
    with pytest.raises(deltasam.NotCoveredError, match="examples interact"):
        trained(model, of_batch(model, n))


def test_a_head_that_begins_at_zero_is_fine() -> None:
    model = Model(lambda m, x: m.head(hidden(m, x)))
    nn.init.zeros_(model.head.weight)
    assert max(trained(model, of_batch(model))) < 1e-10


def later(m: Any, x: Tensor, change: Callable[[Any, Tensor], Tensor] | None) -> Tensor:
    h = hidden(m, x)
    return m.head(h if change is None else change(m, h))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradients[0] @ w, gradients[0].T @ x


@pytest.mark.parametrize("of_gate", ["parameter", "buffer"])
def test_a_hidden_use_is_found_while_its_gradient_is_zero(of_gate: str) -> None:
    """Behind a gate that begins at 0 the values of all gradients are those that the seen uses explain."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(hidden(m, x) + m.gate * Product.apply(x, m.enc.weight))

    model = Model(forward)
    gate = torch.zeros(())
    if of_gate == "parameter":
        model.gate = nn.Parameter(gate)
    else:
        model.register_buffer("gate", gate)
    with pytest.raises(deltasam.NotCoveredError, match=r"enc\.weight: has a gradient that its uses do not explain"):
        trained(model, of_batch(model), steps=1)


CHANGES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "centred": lambda m, h: 2 * (h - h.mean(0)),
    "reversed": lambda m, h: h.flip(0),
    "rolled": lambda m, h: h.roll(1, 0),
    "halves": lambda m, h: torch.cat(h.chunk(2)[::-1]),
    "restacked": lambda m, h: torch.stack(h.unbind()[::-1]),
    "normalised": lambda m, h: F.batch_norm(h, None, None, training=True),
    "by numpy": lambda m, h: h[torch.tensor([1, 2, 3, 0]).numpy()],
    "by a list": lambda m, h: h[[1, 2, 3, 0]],
    "one by one": lambda m, h: torch.stack([h[i] for i in (1, 2, 3, 0)]),
    "a hidden use": lambda m, h: h + Product.apply(h, m.enc.weight),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_appears_later(name: str) -> None:
    x, y = torch.randn(N, D), torch.randint(0, C, (N,))

    def of(change: Any) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, change), y, reduction="none")

    steps(Model(later), of(None), of(None), of(CHANGES[name]), reason="interact|do not explain|alone")


@pytest.mark.parametrize("kind", ["list", "numpy", "ints"])
def test_another_order_that_is_no_tensor(kind: str) -> None:
    def forward(m: Any, x: Tensor, order: list[int]) -> Tensor:
        h = hidden(m, x)
        if kind == "ints":
            return m.head(torch.stack([h[i] for i in order]))
        return m.head(h[order if kind == "list" else torch.tensor(order).numpy()])

    x, y = torch.randn(N, D), torch.randint(0, C, (N,))

    def ordered(*order: int) -> Callable[[Any], Tensor]:
        return lambda m: F.cross_entropy(m(x, list(order)), y[list(order)], reduction="none")

    steps(Model(forward), ordered(0, 1, 2, 3), ordered(1, 2, 3, 0), reason="examples interact inside the model")


def test_a_second_derivative_that_comes_later() -> None:
    def forward(m: Any, x: Tensor, penalty: bool) -> Tensor:
        x = x.clone().requires_grad_()
        energy = m.head(torch.tanh(m.enc(x))).sum(1)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy.square() + (force.square().sum(1) if penalty else 0)

    x = torch.randn(N, D)
    model = Model(forward)
    reason = "another gradient in the second pass|do not explain|alone|interact"
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    method.backward(lambda: model(x, False))
    with pytest.raises(deltasam.NotCoveredError, match=reason):
        method.backward(lambda: model(x, True))


def test_a_hook_on_a_parameter_that_comes_later() -> None:
    model = Model(lambda m, x: m.head(hidden(m, x)))
    losses = of_batch(model)
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    method.backward(lambda: losses(model))
    model.enc.weight.register_hook(lambda g: g * (torch.arange(D) > 3))
    with pytest.raises(deltasam.NotCoveredError, match=r"enc\.weight: has a gradient that its uses do not explain"):
        method.backward(lambda: losses(model))


def test_other_groups() -> None:
    """One group alone shows nothing of two."""
    model = Model(lambda m, x: m.head(torch.tanh(hidden(m, x) - hidden(m, x).mean(0))))
    method = deltasam.PerInstanceSAM(model, rho=RHO, m=4)
    few, many = of_batch(model, 4), of_batch(model, 8)
    method.backward(lambda: few(model))
    with pytest.raises(deltasam.NotCoveredError, match="examples interact inside the model"):
        method.backward(lambda: many(model))


@pytest.mark.parametrize(("n", "pair"), [(4, (0, 3)), (4, (1, 2)), (7, (0, 6)), (7, (2, 5)), (3, (0, 2))])
def test_a_single_pair_of_few(n: int, pair: tuple[int, int]) -> None:
    mates = torch.eye(n)
    mates[pair], mates[pair[::-1]] = 0.5, 0.5
    model = Model(lambda m, x: m.head(torch.tanh(mates @ hidden(m, x))))
    losses = of_batch(model, n)
    with pytest.raises(deltasam.NotCoveredError, match="examples interact"):
        deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: losses(model))


def test_moved_weights_may_leave_a_domain() -> None:
    model = Model(
        lambda m, x: m.head(hidden(m, x)) + m.t.log().mean() * m.aux(x), t=nn.Parameter(torch.full((D,), 0.01))
    )
    losses = of_batch(model)
    wanted = own_copies.gradient_of_copies(model, losses, 1e-3)
    deltasam.PerInstanceSAM(model, rho=1e-3).backward(lambda: losses(model))
    assert own_copies.error(model, wanted) < 1e-10


def test_one_loss_that_looks_like_one_example() -> None:
    model = Model(lambda m, x: m.head(hidden(m, x)))
    losses = of_batch(model)
    with pytest.raises(deltasam.NotCoveredError, match="the model was called with 4 rows"):
        deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: losses(model).mean().unsqueeze(0))


def test_a_complex_parameter() -> None:
    model = Model(lambda m, x: m.head(torch.fft.irfft(torch.fft.rfft(m.enc(x)) * m.w, D)))
    model.w = nn.Parameter(torch.randn(D // 2 + 1, dtype=torch.complex128))
    losses = of_batch(model)
    with pytest.raises(deltasam.NotCoveredError, match="w: is complex"):
        deltasam.PerInstanceSAM(model, rho=RHO).backward(lambda: losses(model))


@pytest.mark.parametrize("unsupported", ["error", "loop"])
def test_what_another_way_left_out_is_not_left_out(unsupported: str) -> None:
    model, losses = problem("straight_through_weight")
    skipping = deltasam.PerInstanceSAM(model, rho=RHO, unsupported="skip")
    skipping.backward(lambda: losses(model))
    other = deltasam.PerInstanceSAM(model, rho=RHO, unsupported=unsupported)
    other.load_state_dict(skipping.state_dict())
    if unsupported == "error":
        with pytest.raises(deltasam.NotCoveredError, match="do not explain"):
            other.backward(lambda: losses(model))
    else:
        wanted = own_copies.gradient_of_copies(model, losses, RHO)
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other.backward(lambda: losses(model))
        assert own_copies.error(model, wanted) < 1e-10
