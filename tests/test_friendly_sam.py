"""Friendly SAM: what its moving average is, and what keeps out of it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import FriendlySAM, Runtime, reference


def line() -> nn.Linear:
    """One weight, which is 2."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    return model


def falling(model: nn.Linear, slope: float) -> Callable[[], Tensor]:
    """A loss with this gradient at the weight 2, and this plus 1 where the weight is 3."""
    return lambda: 0.5 * (model.weight - 2).square().sum() + slope * model.weight.sum()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, generator=g).double(), torch.randint(4, (6,), generator=g)) for _ in range(count)]


def losses(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(method: deltasam.Method, some: list[tuple[Tensor, Tensor]], **options: Any) -> Tensor:
    """Weights after a step of gradient descent for each batch."""
    for batch in some:
        method.model.zero_grad()
        method.backward(lambda b=batch: losses(method.model, b), **options)
        with torch.no_grad():
            for p in method.model.parameters():
                p.sub_(0.5 * p.grad)
    return torch.cat([p.detach().flatten() for p in method.model.parameters()])


def average(method: deltasam.Method) -> dict[str, Tensor]:
    return method.state_dict()["gradient_average"]


def test_by_hand() -> None:
    """Gradients 1, -3, 4 at the same weight: averages 1, 0.6, 0.94; directions 1, -4, 3.4."""
    model = line()
    method = FriendlySAM(model, rho=1.0, momentum=0.9)
    for slope, mean, descent, norm in [(1.0, 1.0, 2.0, 1.0), (-3.0, 0.6, -4.0, 4.0), (4.0, 0.94, 5.0, 3.4)]:
        model.zero_grad()
        step = method.backward(falling(model, slope))
        assert average(method)["weight"].item() == pytest.approx(mean)
        assert model.weight.grad.item() == pytest.approx(descent)
        assert step.metrics["ascent_norm"].item() == pytest.approx(norm)


def test_a_gradient_that_is_the_average_perturbs_nothing() -> None:
    model = line()
    method = FriendlySAM(model, rho=1.0)
    method.backward(falling(model, 2.0))
    model.zero_grad()
    step = method.backward(falling(model, 2.0))
    assert model.weight.grad.item() == 2.0
    assert step.metrics["radius_ratio"] == 0


def test_without_subtraction_it_is_sam() -> None:
    assert torch.equal(
        train(FriendlySAM(net(), rho=0.1, sigma=0.0), batches(4)), train(deltasam.SAM(net(), rho=0.1), batches(4))
    )


def test_order_of_the_paper_is_the_same_for_sigma_1() -> None:
    """It subtracts the average after its update: g - (0.9 m + 0.1 g) is 0.9 (g - m)."""
    model, given = net(), batches(2)
    found = FriendlySAM(model, rho=0.1)
    found.backward(lambda: losses(model, given[0]))
    model.zero_grad()
    found.backward(lambda: losses(model, given[1]))
    first, second = (reference.losses_function(model, lambda call, b=b: losses(call, b)) for b in given)
    m, g, w = reference.erm(*first), reference.erm(*second), second[1]
    after = {n: v - (0.9 * m[n] + 0.1 * v) for n, v in g.items()}
    expected = reference.erm(second[0], reference.moved(w, after, reference.step(0.1, after)))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_a_changing_loss_scale_changes_nothing() -> None:
    plain = FriendlySAM(net(), rho=0.1)
    scaled = FriendlySAM(net(), rho=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for i, batch in enumerate(batches(4)):
        train(plain, [batch])
        scaled.model.zero_grad()
        step = scaled.backward(lambda b=batch: losses(scaled.model, b), runtime=Runtime(scaler=scaler))
        with torch.no_grad():
            for p in scaled.model.parameters():
                p.sub_(0.5 * p.grad / scaler.get_scale())
        scaler.update(2.0 ** (5 * i))
        for name, value in average(plain).items():
            assert torch.equal(average(scaled)[name], value)
        assert step.metrics["ascent_norm"] < 10
    for p, q in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_infinite_gradient_does_not_enter(bad: float) -> None:
    model = net()
    method = FriendlySAM(model, rho=0.1)
    good, other = batches(2)
    method.backward(lambda: bad * losses(model, good))
    assert average(method) == {}
    method.backward(lambda: losses(model, good))
    before = average(method)
    method.backward(lambda: bad * losses(model, other))
    assert all(torch.equal(average(method)[n], m) for n, m in before.items())


def test_a_saved_state_stays_as_it_is() -> None:
    method = FriendlySAM(net(), rho=0.1)
    train(method, batches(1))
    saved = method.state_dict()
    kept = copy.deepcopy(saved)
    train(method, batches(3))
    assert all(torch.equal(saved["gradient_average"][n], m) for n, m in kept["gradient_average"].items())


@pytest.mark.parametrize("schedule", ["", "@every=2"])
def test_goes_on_from_a_file(schedule: str) -> None:
    def make(model: nn.Module) -> deltasam.Method:
        method = deltasam.make_method(f"friendly_sam:rho=0.1{schedule}", model)
        method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
        return method

    whole = make(net())
    train(whole, batches(3))
    model, file = copy.deepcopy(whole.model), io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again = make(model)
    again.load_state_dict(torch.load(file, weights_only=True))
    rest = batches(6)[3:]
    assert torch.equal(train(again, rest), train(whole, rest))
    assert not torch.equal(train(make(copy.deepcopy(model)), rest), train(again, rest))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "saves gradient_average, but was given nothing"),
        ({"uncovered": []}, "saves gradient_average, but was given uncovered"),
        ({"gradient_average": {"0.weight": torch.ones(2, 2)}}, r"an average of 0.weight \[2, 2\]"),
        (
            {"gradient_average": {"elsewhere": torch.ones(2)}},
            r"an average of elsewhere \[2\], which the model does not",
        ),
    ],
)
def test_another_state_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FriendlySAM(net()).load_state_dict(state)


def test_parameters_come_and_go() -> None:
    model = net()
    model.register_parameter("unused", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    model[0].weight.requires_grad_(False)
    method = FriendlySAM(model, rho=0.1)
    first, second, third = batches(3)
    method.backward(lambda: losses(model, first))
    assert set(average(method)) == {"0.bias", "2.weight", "2.bias"}
    model[0].weight.requires_grad_(True)
    model[2].bias.requires_grad_(False)
    method.backward(lambda: losses(model, second))
    assert set(average(method)) == {"0.weight", "0.bias", "2.weight"}  # one begins, one is gone
    before = average(method)
    method.backward(lambda: F.mse_loss(model[0](third[0]), torch.zeros(6, 8).double()))
    assert torch.equal(average(method)["2.weight"], 0.9 * before["2.weight"])  # no gradient is a gradient of 0
    assert not torch.equal(average(method)["0.bias"], 0.9 * before["0.bias"])


def test_micro_batches() -> None:
    """Apart, each is a call of its own; together, their sum is one gradient."""
    found: dict[str, dict[str, Tensor]] = {}
    given = batches(2)
    for share in ("micro-batch", "rank", "calls"):
        model = net()
        method = FriendlySAM(model, rho=0.1, share="micro-batch" if share == "calls" else share)
        closures = [lambda b=b, m=model: losses(m, b) / 2 for b in given]
        for part in closures if share == "calls" else [closures]:
            method.backward(part)
        found[share] = average(method)
    both = tuple(torch.cat(parts) for parts in zip(*given, strict=True))
    whole = reference.erm(*reference.losses_function(net(), lambda call: losses(call, both)))
    for name, m in found["micro-batch"].items():
        assert torch.equal(m, found["calls"][name])
        torch.testing.assert_close(found["rank"][name], whole[name], rtol=1e-10, atol=1e-12)


def test_an_error_in_a_later_micro_batch_undoes_the_earlier() -> None:
    model = net()
    method = FriendlySAM(model, rho=0.1)
    given = batches(3)
    method.backward(lambda: losses(model, given[0]))
    before = average(method)

    def broken() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.backward([lambda: losses(model, given[1]), broken])
    assert all(torch.equal(average(method)[n], m) for n, m in before.items())


def test_a_step_without_perturbation_leaves_the_average() -> None:
    model = net()
    method = deltasam.make_method("friendly_sam:rho=0.1@every=2", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.follow(optimizer)
    for plain in (False, True):
        before = average(method.method)
        method.backward(lambda: losses(model, batches(1)[0]))
        assert (average(method.method) == before) == plain
        optimizer.step()


def test_bad_hyper_parameters() -> None:
    for arguments, message in [({"momentum": 1.0}, "0 or more, and below 1"), ({"sigma": -1}, "0 or more")]:
        with pytest.raises(ValueError, match=message):
            FriendlySAM(net(), **arguments)
