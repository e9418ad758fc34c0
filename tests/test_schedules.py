"""Schedules: which steps are perturbed, how far, at what price, and how steps are counted."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from deltasam import reference
from deltasam.schedules import Every, Last

TOTAL = 12
EVERY_SCHEDULE = [
    *("@warmup=4", "@warmup=0.5", "@decay=0.25", "@every=3", "@last=0.25", "@warmup=4@every=2@decay=0"),
    *("@cosine=0.5", "@last=0.5,ramp=0.25"),
]


def factors(spec: str, steps: int = TOTAL) -> list[float]:
    model = nn.Linear(2, 1)
    method = deltasam.make_method(spec, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.follow(optimizer, total_steps=TOTAL)
    found = []
    for _ in range(steps):
        found.append(method.factor())
        optimizer.step()
    return found


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("sam@warmup=4", [0, 0.25, 0.5, 0.75] + [1] * 8),
        ("sam@warmup=0.5", [k / 6 for k in range(6)] + [1] * 6),
        ("sam@decay=0.25", [1 - 0.75 * k / 12 for k in range(12)]),
        ("sam@every=3", [1, 0, 0] * 4),
        ("sam@last=0.25", [0] * 9 + [1] * 3),
        ("sam@every=2@last=0.5", [0] * 6 + [1, 0] * 3),
        ("sam@last=0.5,ramp=0.25", [0] * 6 + [1 / 3, 2 / 3] + [1] * 4),
        ("sam@last=0.5,ramp=0", [0] * 6 + [1] * 6),
        ("sam@cosine=1", [(1 - math.cos(math.pi * k / 12)) / 2 for k in range(12)]),
        ("sam@cosine=0.5", [(1 - math.cos(math.pi * k / 6)) / 2 for k in range(6)] + [1] * 6),
    ],
)
def test_factors(spec: str, expected: list[float]) -> None:
    assert factors(spec) == pytest.approx(expected)


NEUTRAL = {name: cls.neutral for name, cls in deltasam.Method.registry.items() if cls.neutral}


# What follows the optimizer, or noise, goes its own way in tests/test_remembering.py.
FOLLOWING = (
    "momentum_sam",
    "s2_sam",
    "looksam",
    "random_sam",
    "preconditioned_sam",
    "preconditioned_functional_sam",
    "ae_sam",
    "flat_lora",
)


@pytest.mark.parametrize("name", [n for n in NEUTRAL if "rho" in NEUTRAL[n] and n not in FOLLOWING])
@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_training_is_a_loop_with_this_radius_at_each_step(name: str, schedule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randint(2, (6,))
    weights = ",weights=norms" if name in ("delta_sam", "rw_sam") else ""
    method = deltasam.make_method(f"{name}:rho=0.1{weights}{schedule}", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method.follow(optimizer, total_steps=TOTAL)
    plain = copy.deepcopy(model)
    wanted = factors(f"{name}{schedule}")
    hyper = deltasam.hyperparameters(deltasam.Method.registry[name])
    settings = {
        k: v for k, v in hyper.items() if k in ("eta", "m", "sigma", "momentum", "tilt", "theta", "alpha", "gamma")
    }
    if weights:
        settings |= {"weights": "norms", "noise": [torch.zeros_like(p) for p in model.parameters()]}
    if name in ("friendly_sam", "vasso"):
        settings |= {"memory": {}}
    for factor in wanted:
        method.backward(lambda: nn.functional.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
        optimizer.zero_grad()
        losses, w = reference.losses_function(plain, lambda m: nn.functional.cross_entropy(m(x), y, reduction="none"))
        gradient = reference.erm(losses, w)
        if factor:
            oracle = getattr(reference, name)
            predict, _ = reference.predict_function(
                plain, lambda m: nn.functional.cross_entropy(m(x), y, reduction="none")
            )
            given = {"losses": losses, "predict": predict, "w": w, "rho": 0.1 * factor, **settings}
            gradient = oracle(**{k: v for k, v in given.items() if k in inspect.signature(oracle).parameters})
        with torch.no_grad():
            for n, p in plain.named_parameters():
                p -= 0.5 * gradient[n]
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_neutral_at_0_is_scaled(name: str) -> None:
    gradients = []
    follows = name in ("momentum_sam", "preconditioned_sam", "preconditioned_functional_sam", "s2_sam")
    for value, schedule in ((0.4, "@decay=0.5"), (0.3, "")):  # half way down to a half: three quarters
        case = cases.make("bert")
        values = ",".join(f"{key}={value}" for key in NEUTRAL[name]) + (",k=1" if name == "looksam" else "")
        method = deltasam.make_method(f"{name}:{values}{schedule}", case.model)
        optimizer = torch.optim.Adam(case.model.parameters(), lr=0.0)
        method.follow(optimizer, total_steps=4)
        for _ in range(2 if schedule else 0):
            optimizer.step()
        if follows:  # what it has seen of a step, in both cases the same
            torch.manual_seed(2)
            case.closure().mean().backward()
            for p in case.model.parameters():
                optimizer.state[p] = {"exp_avg": p.grad, "exp_avg_sq": None if p.grad is None else p.grad.square()}
            getattr(getattr(method, "method", method), "_keep", lambda _: None)(optimizer)
            case.model.zero_grad()
        torch.manual_seed(1)
        method.backward(case.closure)
        gradients.append([p.grad for p in case.model.parameters() if p.grad is not None])
    for scheduled, fixed in zip(*gradients, strict=True):
        torch.testing.assert_close(scheduled, fixed, rtol=1e-10, atol=1e-12)


def test_an_unperturbed_step_costs_one_forward() -> None:
    model, calls = nn.Linear(3, 2), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = deltasam.make_method("sam:rho=0.1@every=2", model)
    method.follow(optimizer)

    def closure() -> Tensor:
        calls.append(0)
        return model(torch.ones(4, 3)).square().mean()

    counts = []
    for _ in range(4):
        calls.clear()
        step = method.backward(closure)
        counts.append(len(calls))
        assert ("perturbed_loss" in step.metrics) == (len(calls) > 1)
        optimizer.step()
    assert counts == [3, 1, 2, 1]  # the first looks whether the closure repeats itself
    assert method.method.rho == 0.1


def test_micro_batches_are_not_steps() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = deltasam.make_method("sam@every=2", model)
    method.follow(optimizer)
    seen = []
    for _ in range(2):
        for _ in range(3):
            seen.append(method.factor())
            method.backward(lambda: model(torch.ones(4, 3)).square().mean() / 3)
        optimizer.step()
    assert seen == [1, 1, 1, 0, 0, 0]


def test_the_count_is_saved() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method, again = (deltasam.make_method("sam@every=3", model) for _ in range(2))
    method.follow(optimizer)
    optimizer.step(), optimizer.step()
    again.follow(optimizer)
    again.load_state_dict(method.state_dict())
    assert [method.factor(), again.factor()] == [0, 0]
    optimizer.step()
    assert [method.factor(), again.factor()] == [1, 1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_follows_no_optimizer_until_told(duplicate: Any) -> None:
    """A copied optimizer has no hooks: the copy would stay at its step for ever."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = deltasam.make_method("sam:rho=0.5@last=0.5", model)
    method.follow(optimizer, total_steps=4)
    optimizer.step()
    model, optimizer, method = duplicate((model, optimizer, method))
    with pytest.raises(RuntimeError, match=r"call method.follow\(optimizer"):
        method.backward(lambda: model(torch.ones(4, 3)).square().mean())
    kept = method.state_dict()
    method.follow(optimizer, total_steps=4)
    method.load_state_dict(kept)
    seen = []
    for _ in range(3):
        seen.append("perturbed_loss" in method.backward(lambda: model(torch.ones(4, 3)).square().mean()).metrics)
        optimizer.step()
    assert seen == [False, True, True]


def test_without_an_optimizer_to_follow_is_an_error() -> None:
    model = nn.Linear(3, 2)
    method = deltasam.make_method("sam@every=2", model)
    with pytest.raises(RuntimeError, match=r"sam:rho=0.02,share=micro-batch@every=2: .*call method.follow\(optimizer"):
        method.backward(lambda: model(torch.ones(4, 3)).square().mean())
    method = deltasam.make_method("sam@last=0.5", model)
    with pytest.raises(ValueError, match=r"@last=0.5 is a fraction of all steps; call follow\(optimizer, total_steps="):
        method.follow(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("erm@every=2", "erm has no radius"),
        ("sam@evry=2", "unknown schedule 'evry'; did you mean 'every'"),
        ("sam@every", "@every takes a number, not ''; write @every=number"),
        ("sam@every=0", "@every=0: must be a whole number of steps, 1 or more"),
        ("sam@every=1.5", "@every=1.5: must be a whole"),
        ("sam@every=inf", "@every=inf: must be a whole"),
        ("sam@warmup=inf", "@warmup=inf: must be a number of steps"),
        ("sam@warmup=1234567.5", "@warmup=1234567.5: must be a number of steps"),
        ("sam@last=2", "@last=2: must be a fraction"),
        ("sam@warmup=1.5", "@warmup=1.5: must be a number of steps, or a fraction"),
        ("sam@decay=nan", "@decay=nan: must be the fraction"),
    ],
)
def test_bad_schedules(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        deltasam.make_method(spec, nn.Linear(1, 1))


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_spec_round_trip(schedule: str) -> None:
    method = deltasam.make_method(f"sam:rho=0.1{schedule}", nn.Linear(1, 1))
    assert method.spec == f"sam:rho=0.1,share=micro-batch{schedule}"
    assert deltasam.make_method(method.spec, method.model).spec == method.spec


@pytest.mark.parametrize(
    "schedule", ["@warmup=1234567", "@last=0.12345678", "@decay=0.1234567890123456", "@last=1e-07", "@every=1e+20"]
)
def test_no_digit_is_lost(schedule: str) -> None:
    method = deltasam.make_method(f"sam{schedule}", nn.Linear(1, 1))
    assert str(method.schedules[0]) == schedule
    assert deltasam.make_method(method.spec, method.model).schedules[0].value == method.schedules[0].value
    exact = "sam:rho=0.1234567890123456,share=micro-batch" + schedule
    assert deltasam.make_method(exact, method.model).spec == exact


def test_numbers_are_as_they_are_written() -> None:
    written = {Every(100): "@every=100", Every(100.0): "@every=100", Last(0.05): "@last=0.05", Last(1): "@last=1"}
    assert {str(schedule): text for schedule, text in written.items()} == {text: text for text in written.values()}


def test_lists_of_specs_with_schedules() -> None:
    specs = ["sam:rho=0.1@every=2", "sam@warmup=3", "asam:rho=0.5,eta=0.1@last=0.5", "erm"]
    assert deltasam.split_specs(",".join(specs)) == specs


def ended(spec: str, steps: int, total: int | None) -> list[str]:
    """What is said while a model is trained, and at its end."""
    model = nn.Linear(2, 1)
    method = deltasam.make_method(spec, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.follow(optimizer, total_steps=total)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            method.backward(lambda: model(torch.ones(3, 2)).square().mean())
            optimizer.step()
        method.training_ended()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    ("spec", "steps", "total"),
    [("sam@last=0.3", 6, 10), ("sam@last=0.04", 10, 10), ("sam@warmup=0.5", 1, 10), ("sam@cosine=1", 1, 10)],
)
def test_a_schedule_that_let_nothing_be_perturbed_says_so(spec: str, steps: int, total: int) -> None:
    (said,) = ended(spec, steps, total)
    assert f"training has ended after {steps} steps (follow() was told {total})" in said
    assert "this was plain training" in said


@pytest.mark.parametrize("spec", ["sam@last=0.3", "sam@every=20", "sam@warmup=2", "sam@last=0.3@every=2", "sam"])
def test_one_that_did_says_nothing(spec: str) -> None:
    assert ended(spec, 10, 10) == []


def test_at_the_last_step_nobody_needs_to_ask() -> None:
    model = nn.Linear(2, 1)
    method = deltasam.make_method("sam@last=0.04", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.follow(optimizer, total_steps=3)
    optimizer.step()
    optimizer.step()
    with pytest.warns(RuntimeWarning, match="plain training"):
        optimizer.step()
