"""Outputs of the first pass that the second uses again: when, and that nothing differs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cases
import deltasam
from deltasam import reference
from deltasam.core import reuse


class Net(nn.Module):
    """Two blocks with dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 8))
        self.after = nn.Dropout(0.4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(torch.tanh(self.body(x))))


def net(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return kind().double().train()


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 1, 2, 0, 1, 2])


def losses(model: Callable[..., Any], x: Tensor = X) -> Tensor:
    return F.cross_entropy(model(x), Y, reduction="none")


def counted(model: nn.Module, module: str = "body") -> list[int]:
    """Grows with every run of a module; what is counted is its class's forward, which is no hook."""
    runs: list[int] = []
    inner = model.get_submodule(module)
    plain = type(inner).forward

    class Counted(type(inner)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            runs.append(1)
            return plain(self, *args, **kwargs)

    inner.__class__ = Counted
    return runs


def step(
    model: nn.Module, closure: Callable[[], Any] | None = None, only: str | None = "head", runs: list[int] | None = None
) -> dict[str, Tensor]:
    """The gradient of the second step: the first is checked. ``runs`` are counted in the second alone."""
    method = deltasam.SAM(model, rho=0.5, only=only)
    method._steps = 1  # no look at whether the closure repeats itself, which is a pass more
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    for _ in range(2):
        for n, b in model.named_buffers():
            b.copy_(buffers[n])
        if runs is not None:
            runs.clear()
        model.zero_grad()
        torch.manual_seed(5)
        method.backward(closure or (lambda: losses(model)))
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def without_reuse(monkeypatch: pytest.MonkeyPatch, run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(reuse.Reuse, "_still", lambda *_: iter(()))
        return run()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-12, atol=1e-14)


def expected(model: nn.Module, part: str = "head") -> dict[str, Tensor]:
    """From the equation."""
    torch.manual_seed(5)
    of, w = reference.losses_function(model, lambda call: losses(call))
    g = {n: v if part in n else torch.zeros_like(v) for n, v in reference.erm(of, w).items()}
    return reference.erm(of, reference.moved(w, g, reference.step(0.5, g)))


def test_what_is_below_runs_once_and_nothing_differs() -> None:
    model = net()
    runs = counted(model)
    found = step(model, runs=runs)
    assert len(runs) == 1
    same(found, expected(model))


def test_all_of_it_runs_where_all_moves() -> None:
    model = net()
    runs = counted(model)
    step(model, only=None, runs=runs)
    assert len(runs) == 2


def test_the_random_state_goes_on_as_after_a_plain_pass() -> None:
    model = net()
    torch.manual_seed(5)
    losses(model)
    after = torch.rand(3)
    step(model)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("name", ["bert", "padded", "gpt2", "lora"])
@pytest.mark.parametrize("only", ["head", r"layer\.1|h\.1"])
def test_real_architectures(name: str, only: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make(name)
    found = step(case.model, case.closure, only)
    same(found, without_reuse(monkeypatch, lambda: step(case.model, case.closure, only)))


def test_a_step_after_the_other() -> None:
    model = net()
    method = deltasam.SAM(model, rho=0.5, only="head")
    for _ in range(3):
        torch.manual_seed(5)
        right = expected(model)
        torch.manual_seed(5)
        model.zero_grad()
        method.backward(lambda: losses(model))
        same({n: p.grad for n, p in model.named_parameters()}, right)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)


def test_the_module_has_its_own_forward_again_after_an_error() -> None:
    model = net()
    for failing in range(6):
        calls = itertools.count()

        def closure() -> Tensor:
            result = losses(model)
            if next(calls) == failing:  # noqa: B023
                raise KeyboardInterrupt
            return result

        with pytest.raises(KeyboardInterrupt):
            step(model, closure)
        assert all("forward" not in vars(m) for m in model.modules())
    same(step(model), expected(model))


# Where it would not be exact, the module runs.


class Buffered(Net):
    """Its body counts in a buffer, which enters the output."""

    def __init__(self) -> None:
        super().__init__()

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 8)
                self.register_buffer("scale", torch.ones(()))

            def forward(self, x: Tensor) -> Tensor:
                self.scale.add_(1)
                return self.linear(x) * self.scale

        self.body = Body()


class Hidden(Net):
    """Its body uses the head's weight without holding it as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        head = self.head

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 8)
                self.elsewhere = [head]

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(x) + self.elsewhere[0].weight.sum(0)

        self.body = Body()


class InPlace(Net):
    """The body's output is written into."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.body(x).tanh_()))


class Noisy(Net):
    """What comes after the body draws random numbers of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)) + torch.rand(8, dtype=x.dtype))


class Twice(Net):
    """The body runs on two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.body(x)) * torch.tanh(self.body(-x)))


class Checkpointed(Net):
    """The body is run again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(torch.tanh(checkpoint(self.body, x, use_reentrant=False))))


class Fed(Net):
    """The head's output goes back into the body."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(torch.tanh(self.body(x)))
        return self.head(torch.tanh(self.body(F.pad(first, (0, 1)))))


@pytest.mark.parametrize(("kind", "runs"), [(Noisy, 1), (Buffered, 2), (Hidden, 2), (InPlace, 2), (Twice, 2), (Fed, 4)])
def test_kinds_of_modules(kind: type[nn.Module], runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = net(kind), net(kind)
    counts = counted(model)
    found = step(model, runs=counts)
    assert len(counts) == runs
    same(found, without_reuse(monkeypatch, lambda: step(twin)))


def test_checkpoints_run_again_in_the_backward_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(Checkpointed)
    counts = counted(model)
    found = step(model, runs=counts)
    assert len(counts) == 2
    same(found, without_reuse(monkeypatch, lambda: step(net(Checkpointed))))


@pytest.mark.parametrize("place", ["body", "body.0"])
def test_a_module_that_is_hooked_runs(place: str) -> None:
    model = net()
    runs = counted(model)
    seen: list[int] = []
    model.get_submodule(place).register_forward_hook(lambda *_: seen.append(1))
    found = step(model, runs=runs)
    assert (len(runs), len(seen)) == (2, 6)  # of the two steps the first has a check, which is two passes more
    same(found, expected(model))


def test_other_inputs_are_other_outputs() -> None:
    """A closure that draws its own noise, differently in a later pass."""
    model = net()
    given = itertools.cycle([X, 2 * X])
    runs = counted(model)
    step(model, lambda: losses(model, next(given)), runs=runs)
    assert len(runs) == 2


def test_equal_inputs_are_the_same_though_they_are_made_anew() -> None:
    model = net()
    runs = counted(model)
    found = step(model, lambda: losses(model, X.clone()), runs=runs)
    assert len(runs) == 1
    same(found, expected(model))


def test_an_input_written_into_is_another() -> None:
    model, batch = net(), X.clone()

    def closure(of: nn.Module, x: Tensor) -> Tensor:
        x.mul_(1.5)
        return losses(of, x)

    runs = counted(model)
    step(model, lambda: closure(model, batch), runs=runs)
    assert len(runs) == 2


# What cannot be seen is found by the check, and then everything runs.


class Residual(Net):
    """A checkpoint around what moves and what does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        def block(h: Tensor) -> Tensor:
            return h + self.head[0](torch.tanh(self.inner(h)))

        return self.head[1](checkpoint(block, self.body(x), use_reentrant=False))


class Returning(Net):
    """Its body returns a dictionary that is changed."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Linear(4, 8)

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = inner

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"h": self.linear(x)}

        self.body = Body()

    def forward(self, x: Tensor) -> Tensor:
        output = self.body(x)
        output["h"] = torch.tanh(output["h"])
        return self.head(output["h"])


class Appending(Net):
    """Its body appends a term of the loss to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = terms = []

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 8)

            def forward(self, x: Tensor) -> Tensor:
                h = self.linear(x)
                terms.append(h.square().mean())
                return h

        self.body = Body()

    def forward(self, x: Tensor) -> Tensor:
        self.terms.clear()
        return self.head(torch.tanh(self.body(x))) + sum(self.terms)


class Reversed(Net):
    """A hook on the body's output turns its gradient around."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h.register_hook(lambda g: -g)
        return self.head(torch.tanh(h))


class Towers(Net):
    """One body under two names, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.other = self.body
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.body(x))) * self.drop(torch.tanh(self.other(x))))


class ParentsBuffer(Net):
    """Its body counts in a buffer of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        whole = [self]

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 8)

            def forward(self, x: Tensor) -> Tensor:
                whole[0].scale.add_(1)
                return self.linear(x) * whole[0].scale

        self.body = Body()


class Detached(Net):
    """Its body depends on the head without a graph."""

    def __init__(self) -> None:
        super().__init__()
        head = [self.head]

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 8)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(x) * head[0].weight.detach().norm()

        self.body = Body()


class Sparse(Net):
    """Its body is given a sparse matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body[3](torch.sparse.mm(x.to_sparse(), torch.ones(4, 8).to(x)))))


UNSEEN = [Residual, Returning, Appending, Reversed, Towers, ParentsBuffer, Detached, Sparse]


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_is_not_seen(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    found = step(net(kind))
    same(found, without_reuse(monkeypatch, lambda: step(net(kind))))


def closures() -> dict[str, Callable[[nn.Module], Callable[[], Any]]]:
    """Closures with habits of their own."""

    def looks_first(model: nn.Module) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            if not deltasam.in_later_pass():
                with torch.no_grad():
                    model(X)
            return losses(model)

        return closure

    def evaluates_first(model: nn.Module) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            if not deltasam.in_later_pass():
                model.eval()
                model(X)
                model.train()
            return losses(model)

        return closure

    def hooks_inside(model: nn.Module) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            seen: list[Tensor] = []
            hook = model.body[0].register_forward_hook(lambda _m, _i, output: seen.append(output))
            result = losses(model)
            hook.remove()
            return result + seen[0].square().mean()

        return closure

    def penalises_gradients(model: nn.Module) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            result = losses(model)
            (g,) = torch.autograd.grad(result.mean(), [model.body[0].weight], retain_graph=True)
            return result * (1 + g.norm().detach())

        return closure

    def asks_the_input(model: nn.Module) -> Callable[[], Tensor]:
        x = X.clone().requires_grad_()

        def closure() -> Tensor:
            result = losses(model, x)
            (g,) = torch.autograd.grad(result.mean(), [x], create_graph=True)
            return result + g.square().sum()

        return closure

    def alternates(model: nn.Module) -> Callable[[], Tensor]:
        given = itertools.cycle([X, 2 * X])
        return lambda: losses(model, next(given))

    def calls_forward(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: losses(model) + model.head(model.body.forward(X)).square().mean()

    made = (looks_first, evaluates_first, hooks_inside, penalises_gradients, asks_the_input, alternates, calls_forward)
    return {f.__name__: f for f in made}


@pytest.mark.parametrize("name", [name for name in closures() if name != "alternates"])  # a check takes a turn
def test_closures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = closures()[name]
    model, twin = net(), net()
    found = step(model, make(model))
    same(found, without_reuse(monkeypatch, lambda: step(twin, make(twin))))


def test_a_check_that_fails_ends_it() -> None:
    model = net(Detached)
    runs = counted(model)
    method = deltasam.SAM(model, rho=0.5, only="head")
    counts = []
    for _ in range(4):
        runs.clear()
        method.backward(lambda: losses(model))
        counts.append(len(runs))
    assert counts[1:] == [2, 2, 2]
    assert not all(method._reused.exact.values())


def test_other_calls_are_checked_anew() -> None:
    """A batch that takes another way through the model is another behaviour."""
    model = net()
    runs = counted(model)
    method = deltasam.SAM(model, rho=0.5, only="head")
    method._steps = 1
    counts = []
    for twice in (False, False, True, True, False):

        def closure(twice: bool = twice) -> Tensor:
            return losses(model) + (losses(model, -X) if twice else 0.0)

        runs.clear()
        method.backward(closure)
        counts.append(len(runs))
    assert counts == [3, 1, 6, 2, 1]


SEEN = [Noisy, Buffered, Hidden, InPlace, Twice, Fed, Returning, Reversed, Towers, ParentsBuffer, Sparse]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse.ReuseHistory, "is_due", lambda *_: False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", SEEN)
def test_what_is_seen_needs_no_check(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    found = step(net(kind))
    same(found, without_reuse(monkeypatch, lambda: step(net(kind))))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["looks_first", "evaluates_first", "alternates", "calls_forward"])
def test_calls_that_are_seen_need_no_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = closures()[name]
    model, twin = net(), net()
    found = step(model, make(model))
    same(found, without_reuse(monkeypatch, lambda: step(twin, make(twin))))


@pytest.mark.usefixtures("unchecked")
def test_a_hook_of_ones_own_needs_no_check() -> None:
    model = net()
    seen: list[int] = []
    model.body[0].register_forward_hook(lambda *_: seen.append(1))
    found = step(model)
    assert len(seen) == 4
    same(found, expected(model))
