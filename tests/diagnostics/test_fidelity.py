"""Every number beside an independent computation; everything put back; what cannot be measured is said."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
import deltasam
from counting import Counting
from deltasam import Method, reference
from deltasam.diagnostics import Closeness, Fidelity, at_radius, default_methods, fidelity
from deltasam.diagnostics.closeness import compare
from deltasam.diagnostics.fidelity import rho_of, spec_with_rho
from deltasam.diagnostics.measure import Harness

RHO = 0.3


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Counting().double().train()


def closure_on(model: nn.Module, seed: int = 0) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (6,), generator=generator)
    return lambda: F.cross_entropy(model(x), y, reduction="none")


def only(results: list[Fidelity]) -> Closeness:
    (result,) = results
    (closeness,) = result.batches
    return closeness


# Every number, computed from the equations.


def flat(gradient: reference.Weights) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def rise(losses: reference.Losses, w: reference.Weights, ascent: reference.Weights, rho: float) -> Tensor:
    """``L_i(w + rho * a / |a|) - L_i(w)`` for each example [n]."""
    with torch.no_grad():
        return losses(reference.moved(w, ascent, reference.step(rho, ascent))) - losses(w)


def exact_rise(losses: reference.Losses, w: reference.Weights) -> float:
    """``sum_i L_i(w + e_i) - L_i(w)``."""
    own = [reference.gradient(losses(w)[i], w) for i in range(len(losses(w)))]
    return float(sum(rise(losses, w, g, RHO)[i] for i, g in enumerate(own)))


@pytest.mark.parametrize("case_name", ["bert", "padded"])
@pytest.mark.parametrize("spec", ["erm", "sam", "delta_sam:norms", "delta_sam:slopes", "delta_sam:curvature"])
def test_equals_the_equations(case_name: str, spec: str, monkeypatch: Any) -> None:
    case = cases.make(case_name)
    name, _, weights = spec.partition(":")
    changes: dict[str, Any] = {} if name == "erm" else {"rho": RHO}
    if weights:
        changes |= {"weights": weights, "sigma": 0.05}
    method = Method.registry[name](case.model, **changes)
    extra: dict[str, Any] = {}
    if name == "delta_sam":  # the noise is the method's own; the reference is given the same
        extra["noise"] = [torch.randn_like(p) for p in case.model.parameters() if p.requires_grad]
        monkeypatch.setattr(method._store, "gaussian", lambda *_: extra["noise"])
    torch.manual_seed(3)
    found = only(fidelity(case.model, case.closure, [method], rho=RHO))

    torch.manual_seed(3)
    losses, w = reference.losses_function(case.model, lambda call: case.run(call, None))
    e, x = flat(reference.erm(losses, w)), flat(reference.per_instance_sam(losses, w, rho=RHO, m=1))
    g = flat(getattr(reference, name)(losses, w, **changes, **extra))
    assert found.error == pytest.approx(float((g - x).norm() / (x - e).norm()), rel=1e-8)
    assert found.gradient_error == pytest.approx(float((g - x).norm() / x.norm()), rel=1e-8)
    assert found.gradient_cosine == pytest.approx(cosine(g, x), rel=1e-8)
    if name == "erm":
        assert math.isnan(found.cosine)
        assert found.loss_share == 0.0
        assert math.isnan(found.distance)
        return
    assert found.cosine == pytest.approx(cosine(g - e, x - e), rel=1e-8)
    assert found.distance == pytest.approx(1, rel=1e-8)
    if name == "sam":
        share = float(rise(losses, w, reference.erm(losses, w), RHO).sum()) / exact_rise(losses, w)
        assert found.loss_share == pytest.approx(share, rel=1e-8)


@pytest.mark.parametrize("way", ["norms", "slopes", "curvature"])
def test_adversarial_share_of_delta_sam(model: nn.Module, way: str, monkeypatch: Any) -> None:
    """The share of a reweighted perturbation, from the weights that the step reports."""
    method = deltasam.DeltaSAM(model, rho=RHO, weights=way, sigma=0.05)
    weights: list[Tensor] = []
    backward = method.backward

    def noted(closure: Any) -> deltasam.Step:
        step = backward(closure)
        weights.append(step.metrics["weights"])
        return step

    monkeypatch.setattr(method, "backward", noted)
    torch.manual_seed(3)
    found = only(fidelity(model, closure_on(model), [method], rho=RHO))
    torch.manual_seed(3)
    x = closure_on(model)
    losses, w = reference.losses_function(model, lambda call: _run_as(x, call))
    ascent = reference.gradient((weights[0] * losses(w)).mean(), w)
    share = float(rise(losses, w, ascent, RHO).sum()) / exact_rise(losses, w)
    assert found.loss_share == pytest.approx(share, rel=1e-8)


def _run_as(closure: Callable[[], Tensor], call: Callable[..., Any]) -> Tensor:
    """The closure with another model: its cells hold the inputs and the labels."""
    names = dict(zip(closure.__code__.co_freevars, (c.cell_contents for c in closure.__closure__), strict=True))
    return F.cross_entropy(call(names["x"]), names["y"], reduction="none")


def test_the_exact_method_is_exact(model: nn.Module) -> None:
    found = only(fidelity(model, closure_on(model), ["per_instance_sam"], rho=RHO))
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.gradient_error == pytest.approx(0, abs=1e-12)
    for value in (found.cosine, found.gradient_cosine, found.loss_share):
        assert value == pytest.approx(1, abs=1e-12)


def test_plain_training_is_the_zero_line(model: nn.Module) -> None:
    found = only(fidelity(model, closure_on(model), "erm", rho=RHO))
    assert found.error == pytest.approx(1, abs=1e-12)
    assert found.loss_share == 0.0
    assert math.isnan(found.cosine)


def test_one_group_is_sam(model: nn.Module) -> None:
    sam, grouped = fidelity(model, closure_on(model), "sam,per_instance_sam:m=6", rho=RHO)
    assert grouped.mean.error == pytest.approx(sam.mean.error, rel=1e-9)
    assert grouped.mean.loss_share == pytest.approx(sam.mean.loss_share, rel=1e-9)


def test_distance_tells_units_apart(model: nn.Module) -> None:
    """ASAM's rho is in units of the weights: moved by hand, w + rho T^2 g / |T g| is so far from w."""
    torch.manual_seed(3)
    found = only(fidelity(model, closure_on(model), [deltasam.ASAM(model, rho=RHO)], rho=RHO))
    torch.manual_seed(3)
    losses, w = reference.losses_function(model, lambda call: _run_as(closure_on(model), call))
    unit = {n: v.detach().abs() + 0.01 if "weight" in n else torch.ones_like(v) for n, v in w.items()}
    scaled = {n: unit[n] * g for n, g in reference.erm(losses, w).items()}
    moved = {n: unit[n] * v * reference.step(RHO, scaled) for n, v in scaled.items()}
    assert found.distance == pytest.approx(float(reference.norm(moved)) / RHO, rel=1e-8)
    assert abs(found.distance - 1) > 1e-2


def test_sums_are_in_float64() -> None:
    """Gradients that differ in the eighth digit of a long vector: float32 sums would lose the cosine."""
    torch.manual_seed(0)
    e = 1 + torch.rand(600_000)
    x, g = (torch.nextafter(e, e + s) for s in (torch.ones(()), torch.randn(600_000)))
    found = compare([g], [x], [e], epsilon=1e-9)
    a, b = (g.double() - e.double()), (x.double() - e.double())
    assert found["cosine"] == pytest.approx(cosine(a, b), rel=1e-12)
    assert found["error"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-12)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_has_no_numbers(bad: float) -> None:
    g, x, e = (torch.tensor([v, 1.0]) for v in (bad, 2.0, 3.0))
    assert all(math.isnan(v) for v in compare([g], [x], [e], epsilon=1e-7).values())
    assert all(math.isnan(v) for v in compare([x], [g], [e], epsilon=1e-7).values())


# One radius.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("sam", "sam:rho=0.1"),
        ("sam:rho=0.5", "sam:rho=0.5"),
        ("sam: rho = 0.5", "sam: rho = 0.5"),
        ("asam:eta=0.1", "asam:eta=0.1,rho=0.1"),
        ("sam@every=2", "sam:rho=0.1@every=2"),
        ("sam:share=rank@every=2@last=0.5", "sam:share=rank,rho=0.1@every=2@last=0.5"),
        ("erm", "erm"),
        ("no_such", "no_such"),
    ],
)
def test_radius_of_a_spec(spec: str, expected: str) -> None:
    assert at_radius(spec, 0.1) == expected


def test_specs_get_the_radius_and_methods_keep_theirs(model: nn.Module) -> None:
    methods = ["sam", "sam:rho=0.1", deltasam.SAM(model, rho=0.2)]
    results = fidelity(model, closure_on(model), methods, rho=RHO)
    assert [r.method.replace(",share=micro-batch", "") for r in results] == [
        "sam:rho=0.3",
        "sam:rho=0.1",
        "sam:rho=0.2",
    ]
    assert [r.mean.distance for r in results] == [pytest.approx(x / RHO) for x in (0.3, 0.1, 0.2)]


@pytest.mark.parametrize("rho", [0.02, 0.005, 0.1])  # two of them are defaults, which `short_spec` leaves out
def test_a_label_always_has_the_radius(model: nn.Module, rho: float) -> None:
    for name in ("sam", "per_instance_sam", "asam"):
        spec = deltasam.make_method(f"{name}:rho={rho}", model).spec
        assert rho_of(spec) == rho
        assert spec_with_rho(spec) == f"{name}:rho={rho}"
    assert rho_of("erm") is None
    assert spec_with_rho("erm") == "erm"


def test_a_result_knows_the_radius_that_it_is_compared_with(model: nn.Module) -> None:
    (found,) = fidelity(model, closure_on(model), "sam:rho=0.1", rho=RHO)
    assert (rho_of(found.method), found.exact_rho) == (0.1, RHO)


def test_a_schedule_is_refused(model: nn.Module) -> None:
    scheduled = deltasam.make_method("sam@every=2", model)
    for method in ("sam@every=2", scheduled):
        with pytest.raises(ValueError, match=r"has a schedule, so that its radius changes.* give sam:rho="):
            fidelity(model, closure_on(model), [method], rho=RHO)


def test_default_methods_come_from_the_registry(model: nn.Module) -> None:
    assert default_methods()[0] == "erm"
    with_rho = {name for name in deltasam.method_names() if "rho" in Method.registry[name].neutral}
    without_a_past = {"momentum_sam", "s2_sam", "looksam", "preconditioned_sam", "preconditioned_functional_sam"}
    one_pass = {"random_sam", "flat_lora"}
    assert {*default_methods(), "per_instance_sam"} == {"erm", *with_rho} - without_a_past - one_pass
    found = fidelity(model, closure_on(model))
    assert [r.method.partition(":")[0] for r in found] == default_methods()


# Several batches.


def test_batches_are_summed_up(model: nn.Module) -> None:
    (result,) = fidelity(model, (closure_on(model, s) for s in range(3)), ["sam"], rho=RHO)
    errors = [b.error for b in result.batches]
    assert len(set(errors)) == 3
    assert result.mean.error == pytest.approx(np.mean(errors))
    assert result.spread.error == pytest.approx(np.std(errors, ddof=1))
    assert result.cost > 0


def test_each_batch_has_masks_of_its_own(model: nn.Module) -> None:
    (result,) = fidelity(model, [closure_on(model)] * 2, ["sam"], rho=RHO)
    assert result.batches[0].error != result.batches[1].error


def test_every_method_sees_the_same_masks(model: nn.Module) -> None:
    (one,), both = (fidelity(model, closure_on(model), m, rho=RHO) for m in (["sam"], ["delta_sam", "erm", "sam"]))
    assert both[2].batches == one.batches


def test_every_method_starts_from_the_same_buffers(model: nn.Module) -> None:
    bench = Harness(model)
    for _ in range(3):
        bench.measure(deltasam.ERM(model), closure_on(model))
        assert model.calls == 1


def test_an_undefined_number_is_left_out_of_the_mean() -> None:
    rows = (Closeness(1, math.nan, 1, 1, 0, math.nan), Closeness(3, 0.5, 1, 1, 0, math.nan))
    result = Fidelity("m", rows, 1.0)
    assert (result.mean.error, result.mean.cosine) == (2, 0.5)
    assert math.isnan(result.mean.distance)
    assert math.isnan(result.spread.cosine)


# Everything is put back, bit for bit.


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    values = [t.detach().clone() for t in tensors]
    gradients = [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    generators = [torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"]]
    hooks = [len(h) for m in model.modules() for k, h in vars(m).items() if k.endswith("_hooks")]
    return [[id(t) for t in tensors], values, gradients, generators, hooks, model.training]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


def with_gradients(model: nn.Module) -> nn.Module:
    """Half a training step: gradients on some parameters, a frozen one among them."""
    closure_on(model)().sum().backward()
    model.first.bias.grad = None
    model.frozen.weight.grad = torch.ones_like(model.frozen.weight)
    return model


def drawing(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: closure() * (1 + random.random()) * (1 + np.random.random())


def test_puts_everything_back(model: nn.Module) -> None:
    with_gradients(model)
    before = state(model)
    fidelity(model, [drawing(closure_on(model, s)) for s in range(2)], rho=RHO)
    assert equal(state(model), before)


class Interrupted(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


def test_puts_everything_back_after_an_exception(model: nn.Module) -> None:
    with_gradients(model)
    before = state(model)
    for failing in range(1000):
        calls = iter(range(1000))

        def closure() -> Tensor:
            losses = drawing(closure_on(model))()
            if next(calls) == failing:  # noqa: B023
                raise Interrupted
            return losses

        try:
            fidelity(model, [closure, closure], "erm,delta_sam", rho=RHO)
        except Interrupted:
            assert equal(state(model), before)
        else:
            break
    assert failing > 15


def test_puts_everything_back_when_there_are_no_more_batches(model: nn.Module) -> None:
    def closures() -> Any:
        yield closure_on(model)
        raise Interrupted

    before = state(with_gradients(model))
    with pytest.raises(Interrupted):
        fidelity(model, closures(), "sam", rho=RHO)
    assert equal(state(model), before)


def test_the_mode_is_kept(model: nn.Module) -> None:
    model.eval()
    first, second = fidelity(model, [closure_on(model)] * 2, "sam", rho=RHO)[0].batches
    assert first == second  # no dropout
    assert not model.training


# What cannot be measured.


def test_a_zero_sharpness_term_is_nan_and_said(model: nn.Module) -> None:
    with pytest.warns(RuntimeWarning, match="on batch 1 the exact gradient.*no more than rounding.*raise rho"):
        results = fidelity(model, [closure_on(model), lambda: 0.0 * closure_on(model)()], "erm,sam", rho=RHO)
    first, second = results[1].batches
    assert all(not math.isnan(x) for x in vars(first).values())
    assert all(math.isnan(x) for x in vars(second).values())
    assert results[1].mean == first


def test_rounding_is_no_sharpness(model: nn.Module) -> None:
    closure = closure_on(model)
    with pytest.warns(RuntimeWarning, match="no more than rounding"):
        found = only(fidelity(model, closure, "sam", rho=1e-16))
    assert math.isnan(found.error)
    assert math.isnan(found.cosine)
    assert math.isnan(found.loss_share)
    assert found.gradient_cosine == pytest.approx(1)


def test_a_method_at_radius_zero_has_no_direction(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = only(fidelity(model, closure_on(model), "sam:rho=0", rho=RHO))
    assert math.isnan(found.cosine)
    assert found.error == pytest.approx(1)
    assert found.loss_share == pytest.approx(0, abs=1e-12)


def test_losses_per_example_are_asked_for(model: nn.Module) -> None:
    before = state(model)
    with pytest.raises(ValueError, match=r"needs one loss per example.*reduction='none'"):
        fidelity(model, lambda: closure_on(model)().mean(), "delta_sam:weights=slopes", rho=RHO)
    assert equal(state(model), before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["smm"]}, "unknown method 'smm'; did you mean 'sam'"),
        ({"methods": "sam:roh=1"}, "did you mean 'rho'"),
        ({"methods": []}, "no method in it; give at least one"),
        ({"closure": []}, "no closure in it; give one per batch"),
        ({"rho": 0}, r"fidelity\(rho=0\): rho must be a finite number, above 0"),
        ({"rho": math.nan}, r"fidelity\(rho=nan\)"),
        ({"methods": [deltasam.SAM(nn.Linear(1, 1))]}, "<SAM sam:rho=.*> was made for another model"),
        ({"methods": ["per_instance_sam:m=4"]}, "m=4 must divide"),
    ],
)
def test_hostile_input(model: nn.Module, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        fidelity(model, **{"closure": closure_on(model), "methods": "sam", **arguments})
    assert "\n" not in str(error.value)


def test_no_grad_is_refused(model: nn.Module) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"under torch\.no_grad"):
        fidelity(model, closure_on(model), "sam")


def test_an_unused_parameter_counts_as_zero(model: nn.Module) -> None:
    def measured() -> Closeness:
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the exact method may have to go the slow way
            return only(fidelity(model, closure_on(model), "sam", rho=RHO))

    without = measured()
    model.unused = nn.Linear(2, 2).double()
    assert vars(measured()) == pytest.approx(vars(without), rel=1e-9)
    assert model.unused.weight.grad is None


def test_float32_agrees_with_float64() -> None:
    case, found = cases.make("padded", torch.float32), []
    for dtype in (torch.float32, torch.float64):
        case.model.to(dtype)
        found.append(vars(only(fidelity(case.model, case.closure, "sam", rho=RHO))))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
