"""Gradients that a backward inside the backward writes into ``.grad`` are part of the ascent, and are written once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deltasam
from deltasam import Method

RHO = 0.5
WAYS = ["sam", "sam:share=rank", "asam", "friendly_sam", "delta_sam:weights=slopes"]


class Recompute(torch.autograd.Function):
    """A checkpoint as several fine-tuning libraries ship it: it calls ``torch.autograd.backward`` in its backward."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, h: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(h.detach())
        with torch.no_grad():
            return block(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None]:
        h = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.block(h)
        torch.autograd.backward(output, gradient)
        return None, h.grad


RUNS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda block, h: block(h),
    "recomputed": lambda block, h: Recompute.apply(block, h),
    "reentrant": lambda block, h: checkpoint(block, h, use_reentrant=True),
}


class Net(nn.Module):
    """Blocks between embeddings and a head; ``run`` says how a block is run."""

    def __init__(self, run: str, *, frozen: bool = False) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])
        self.unused = nn.Parameter(torch.ones(2))
        self.run = RUNS[run]
        if frozen:  # as transformers' enable_input_require_grads()
            self.table.requires_grad_(False)
            self.table.register_forward_hook(lambda _m, _i, output: output.requires_grad_())
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        for block in self.blocks:
            h = self.run(block, h)
        return self.head(h.mean(1))


class Towers(nn.Module):
    """Two encoders and their contrastive loss, at once or from embeddings that are cached (GradCache)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(3, 5)
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.a(x) @ self.b(y).T, torch.arange(len(x)))

    def cached(self, x: Tensor, y: Tensor, where: str) -> Tensor:
        with torch.no_grad():
            u, v = self.a(x), self.b(y)
        u, v = u.requires_grad_(), v.requires_grad_()
        loss = F.cross_entropy(u @ v.T, torch.arange(len(x)))

        def back(tower: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
            with torch.enable_grad():
                for part, g in zip(inputs.split(2), gradient.split(2), strict=True):
                    (tower(part) * g).sum().backward()

        if where == "embeddings":
            u.register_hook(lambda g: back(self.a, x, g))
            v.register_hook(lambda g: back(self.b, y, g))
            return loss
        if where == "embeddings, afterwards":
            u.register_post_accumulate_grad_hook(lambda t: back(self.a, x, t.grad))
            v.register_post_accumulate_grad_hook(lambda t: back(self.b, y, t.grad))
            return loss
        of_u, of_v = torch.autograd.grad(loss, [u, v])
        leaf = loss.detach().requires_grad_()
        result = leaf if where == "the loss" else 1.0 * leaf

        def hook(gradient: Tensor) -> None:
            back(self.a, x, of_u * gradient)
            back(self.b, y, of_v * gradient)

        result.register_hook(hook)
        return result


PLACES = ["the loss", "what the loss becomes", "embeddings", "embeddings, afterwards"]


def method_of(spec: str, model: nn.Module) -> deltasam.Method:
    return deltasam.make_method(f"{spec}{',' if ':' in spec else ':'}rho={RHO}", model)


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in model.parameters()]


def assert_close(actual: list[Tensor | None], expected: list[Tensor | None], factor: float = 1.0) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None and e is not None:
            torch.testing.assert_close(a, factor * e, rtol=1e-12, atol=1e-12 * factor)


class Scaler:
    """What a runtime needs of a loss scaler."""

    def scale(self, loss: Tensor) -> Tensor:
        return 64.0 * loss


@pytest.fixture(params=WAYS)
def spec(request: pytest.FixtureRequest) -> str:
    return request.param


def nets(run: str, **options: bool) -> tuple[Net, Net, Callable[[nn.Module], Tensor]]:
    net = Net(run, **options)
    plain = Net("plain", **options)
    plain.load_state_dict(net.state_dict())
    ids, labels = torch.randint(9, (5, 4)), torch.tensor([0, 1, 2, 0, 1])
    return net, plain, lambda model: F.cross_entropy(model(ids), labels, reduction="none")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("run", ["recomputed", "reentrant"])
def test_checkpoints_with_a_backward_of_their_own(spec: str, run: str, frozen: bool) -> None:
    net, plain, losses = nets(run, frozen=frozen)
    expected = method_of(spec, plain).backward(lambda: losses(plain))
    method = method_of(spec, net)
    step = method.backward(lambda: losses(net))
    assert_close(gradients(net), gradients(plain))
    torch.testing.assert_close(step.metrics["ascent_norm"], expected.metrics["ascent_norm"])
    if spec != "friendly_sam":  # whose average has moved
        method.backward(lambda: losses(net))  # adds to the .grad that is there
        assert_close(gradients(net), gradients(plain), 2.0)


@pytest.mark.parametrize("run", ["recomputed", "reentrant"])
def test_with_a_loss_scaler(spec: str, run: str) -> None:
    net, plain, losses = nets(run)
    expected = method_of(spec, plain).backward(lambda: losses(plain))
    step = method_of(spec, net).backward(lambda: losses(net), runtime=deltasam.Runtime(scaler=Scaler()))
    assert_close(gradients(net), gradients(plain), 64.0)
    torch.testing.assert_close(step.metrics["ascent_norm"], expected.metrics["ascent_norm"])


@pytest.mark.parametrize("run", ["recomputed", "reentrant"])
def test_under_autocast(run: str) -> None:
    net, plain, losses = nets(run)
    for model in (net, plain):
        with torch.autocast("cpu", torch.bfloat16):
            method_of("sam", model.float()).backward(lambda: losses(model))  # noqa: B023
    for a, e in zip(gradients(net), gradients(plain), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("spec", WAYS[:-1])
def test_cached_losses(spec: str, where: str, scaled: bool) -> None:
    model = Towers()
    plain = copy.deepcopy(model)
    x, y = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    expected = method_of(spec, plain).backward(lambda: plain(x, y))
    runtime = deltasam.Runtime(scaler=Scaler()) if scaled else None
    method = method_of(spec, model)
    step = method.backward(lambda: model.cached(x, y, where), runtime=runtime)
    assert_close(gradients(model), gradients(plain), 64.0 if scaled else 1.0)
    torch.testing.assert_close(step.metrics["ascent_norm"], expected.metrics["ascent_norm"])


def test_the_same_grad_stays_there_meanwhile() -> None:
    """``.grad`` comes back as the same tensor with the same values, also after an exception in the ascent."""
    net, _, losses = nets("recomputed")
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = gradients(net)

    def fail() -> Tensor:
        found = losses(net)
        found.register_hook(lambda _: (_ for _ in ()).throw(ZeroDivisionError()))
        return found

    with pytest.raises(ZeroDivisionError):
        method_of("sam", net).backward(fail)
    assert all(g is b and (g == 1).all() for g, b in zip(gradients(net), before, strict=True))


def test_gradients_of_single_examples_are_refused() -> None:
    net, _, losses = nets("recomputed")
    with pytest.raises(deltasam.NotCoveredError, match=r"blocks\.0\.0\.weight"):
        deltasam.make_method("per_instance_sam", net).backward(lambda: losses(net))
    assert all(g is None for g in gradients(net))


class Stepping(nn.Linear):
    """Its weight is trained by an optimizer that steps in the backward."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        optimizer = torch.optim.SGD([self.weight], lr=0.1)
        self.weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())


def test_an_optimizer_that_steps_in_an_inner_backward_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Stepping())
    x = torch.randn(5, 6)
    with pytest.raises(RuntimeError, match="the first pass wrote into the weights"):
        deltasam.SAM(model).backward(lambda: Recompute.apply(model[1], model[0](x)).square().mean())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        deltasam.SAM(model).backward(lambda: checkpoint(model[1], model[0](x), use_reentrant=True).square().mean())


# A closure returns the loss: it takes no gradient itself, and its loss is of this model.


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["erm", "sam", "asam", "friendly_sam", "delta_sam", "per_instance_sam"])
def test_a_backward_in_the_closure_is_an_error(name: str, late: bool) -> None:
    if late and name == "erm":
        pytest.skip("it has one pass")
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def closure() -> Tensor:
        losses = model(x).square().sum(1)
        if late == deltasam.in_later_pass():
            losses.mean().backward(retain_graph=True)
        return losses

    with pytest.raises(RuntimeError, match=r"written into \.grad.*should return the loss"):
        deltasam.make_method(name, model).backward(closure)
    assert model.weight.grad is None


@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_closure_may_clear_the_gradients(set_to_none: bool) -> None:
    """As a closure for ``torch.optim.LBFGS`` does."""
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    method = deltasam.SAM(model)
    method.backward(lambda: model(x).square().mean())
    expected = model.weight.grad.clone()
    method.backward(lambda: (model.zero_grad(set_to_none), model(x).square().mean())[1])
    assert torch.equal(model.weight.grad, expected)


@pytest.mark.parametrize("name", [n for n in deltasam.method_names() if n not in ("r3f", "smart", "freelb")])
def test_another_model_in_the_closure_is_an_error(name: str) -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)), torch.randn(4, 3)
    other, labels = copy.deepcopy(model), torch.tensor([0, 1, 0, 1])
    method = deltasam.make_method(name, model)
    method.follow(torch.optim.Adam(model.parameters()))
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)model"):
        method.backward(lambda: F.cross_entropy(other(x), labels, reduction="none"))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["erm", "sam", "asam", "friendly_sam", "delta_sam:weights=slopes"])
def test_the_error_says_which_model(name: str) -> None:
    model, other, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(4, 3)
    method = deltasam.make_method(name, model)
    with pytest.raises(ValueError, match=r"no trainable parameter of the model.*\(Linear\).*another model, or a copy"):
        method.backward(lambda: other(x).square().sum(1))
    method.backward(lambda: nn.Sequential(model)(x).square().sum(1))  # a wrapper of the same parameters
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    method.backward(lambda: 0.0 * model(x).square().sum(1))  # a gradient of 0 is one


def test_another_model_is_noticed_before_the_second_pass() -> None:
    model, other, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(4, 3)
    calls: list[bool] = []
    with pytest.raises(ValueError, match="no trainable parameter"):
        deltasam.SAM(model).backward(lambda: (calls.append(deltasam.in_later_pass()), other(x).square().mean())[1])
    assert calls == [False]


def test_an_ascent_of_zero_is_said_once() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    method = deltasam.SAM(model)
    with pytest.warns(RuntimeWarning, match=r"SAM: the gradient of the first pass is exactly 0.*step was a plain one"):
        method.backward(lambda: 0.0 * model(x).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.backward(lambda: 0.0 * model(x).sum())
        deltasam.SAM(model, rho=0.0).backward(lambda: 0.0 * model(x).sum())
        deltasam.SAM(model).backward(lambda: model(x).sum())


def test_a_loss_in_place_of_a_closure() -> None:
    model = nn.Linear(3, 2)
    loss = model(torch.randn(4, 3)).square().mean()
    for given in (loss, {"loss": loss}, [loss], None):
        with pytest.raises(TypeError, match=r"in place of a closure.*method\.backward\(lambda: "):
            deltasam.SAM(model).backward(given)


@pytest.mark.parametrize("name", deltasam.method_names())
def test_parameters_in_place_of_a_model(name: str) -> None:
    model = nn.Linear(3, 2)
    for given in (model.parameters(), list(model.parameters()), model.state_dict()):
        with pytest.raises(TypeError, match=r"in place of a model.*give it the model itself, \w+\(model\)"):
            deltasam.make_method(name, given)


@pytest.mark.parametrize("name", ["freelb", "smart"])
@pytest.mark.parametrize("steps", [float("inf"), float("nan"), 1.5, 0])
def test_steps_are_a_whole_number(name: str, steps: float) -> None:
    with pytest.raises(ValueError, match=r"steps must be a whole number, 1 or more"):
        Method.registry[name](nn.Linear(2, 2), steps=steps)
