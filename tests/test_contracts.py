"""What every method must keep, on every kind of model: contracts over registry x model cases.

A new method is in here as soon as it is registered. ``--method-file mine.py`` runs them on one's own alone.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import random
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from deltasam import FunctionalSAM, Method, PerInstanceFunctionalSAM, reference
from deltasam.core.passes import Passes
from deltasam.methods.bases import embeddings

# Every method as it comes, and in the ways that it does not take by itself on most models.
METHODS = [
    *deltasam.method_names(),
    *("delta_sam:weights=slopes", "rw_sam:weights=auto"),
    *(f"{n}:dropout=same" for n, cls in Method.registry.items() if "dropout" in deltasam.hyperparameters(cls)),
]
WITH_RHO = [n for n in METHODS if "rho" in deltasam.hyperparameters(Method.registry[n.partition(":")[0]])]
# Those whose only pass is at moved weights know no loss at the weights, and no ascent of this batch.
ONE_PASS = [
    n for n in METHODS if Method.registry[n.partition(":")[0]].loss_is_perturbed is not Method.loss_is_perturbed
]
CLIMBING = [n for n in WITH_RHO if n not in ONE_PASS]
# Large enough for the perturbation to matter, and noise that float32 resolves.
# BatchNorm in the `mlp` case lets examples meet: per-instance SAM then goes one by one, delta-SAM by slopes.
SETTINGS = {"rho": 0.3, "unsupported": "loop", "alpha": 2.0, "lam": 2.0, "eps": 0.5, "adv_lr": 0.5,
            "init_mag": 0.3, "max_norm": 0.6, "step_size": 0.2, "k": 2}  # fmt: skip
NOISE = {"sigma": 0.05}
MEETING = "mlp"
EXACT = ("norms", "own_curvature", "curvature")  # the weights that the per-example engine gives, or nobody
# What concerns only a model's state, and no mathematics, is the same for one architecture: padded and lora are BERTs
# too, and of the three lora has the most state.
STATE_CASES = ["mlp", "gpt2", "lora"]
MASKS = 5  # a seed for the dropout masks of a pass that draws its own


def oracle_of(name: str) -> Callable[..., Any]:
    """The reference of a method, which is in ``reference`` or beside its class."""
    return reference.reference_of(Method.registry[name])


def case_for(name: str, case_name: str) -> str:
    """The case, or the one that is most like it and has embeddings, for methods that move these."""
    moves_embeddings = "drawn" in inspect.signature(oracle_of(name.partition(":")[0])).parameters
    return "words" if moves_embeddings and case_name == MEETING else case_name


def variants(name: str) -> list[dict[str, Any]]:
    """Hyper-parameters under which a method is compared with the reference: each way, and groups of each size."""
    known = deltasam.hyperparameters(Method.registry[name])
    if "weights" in known:
        return [{"weights": way} for way in Method.registry[name].weightings if way != "auto"]
    if "dropout" in known:
        return [{}, {"dropout": "same"}, {"steps": 2} if "steps" in known else {"noise": "normal"}]
    return [{}, {"m": 2}, {"m": cases.EXAMPLES}] if "m" in known else [{}]


VARIANTS = [
    (case_for(name, case_name), name, changes)
    for case_name in cases.CASES
    for name in deltasam.method_names()
    for changes in variants(name)
    if case_name != MEETING or changes.get("weights") not in EXACT  # refused: see below
    if (case_name, name) != ("lora", "flat_lora")  # whose weights are not those that are trained: test_flat_lora.py
]


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=cases.CASES)
def case(request: pytest.FixtureRequest) -> cases.Case:
    parameters = request.node.callspec.params
    return cases.make(case_for(parameters.get("name", "erm"), parameters["case"]))


for_state_only = pytest.mark.parametrize("case", STATE_CASES, indirect=True)


def build(name: str, model: nn.Module, **changes: Any) -> Method:
    name, _, way = name.partition(":")
    cls = Method.registry[name]
    known = deltasam.hyperparameters(cls)
    given = dict([way.split("=")]) if way else {}
    settings = {**SETTINGS, **(NOISE if known.get("sigma", 1) < 0.1 else {}), **given, **changes}
    method = cls(model, **{k: v for k, v in settings.items() if k in known})
    follow(method)
    return method


def follow(method: Method) -> torch.optim.Optimizer:
    """An optimizer that keeps all that a method may read."""
    optimizer = torch.optim.Adam(method.model.parameters(), lr=0.01)
    method.follow(optimizer)
    return optimizer


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def gradient_of(method: Method, closure: Any, seed: int = 3) -> dict[str, Tensor | None]:
    method.model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    method.backward(closure)
    return grads(method.model)


def state(model: nn.Module) -> dict[str, Any]:
    hooks = {n: [len(h) for k, h in vars(m).items() if k.endswith("_hooks")] for n, m in model.named_modules()}
    return {
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "identity": {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()},
        "buffer_identity": {n: id(b) for n, b in model.named_buffers()},
        "hooks": hooks,
        "keys": list(model.state_dict()),
    }


def assert_same(actual: Any, expected: Any) -> None:
    """Equal bit for bit."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


def relative_error(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> float:
    shapes = {n: g if g is not None else actual.get(n) for n, g in expected.items()}
    dense = [
        torch.cat(
            [(torch.zeros_like(s) if v.get(n) is None else v[n]).flatten() for n, s in shapes.items() if s is not None]
        )
        for v in (actual, expected)
    ]
    return float((dense[0] - dense[1]).norm() / dense[1].norm())


# 1. Afterwards everything is as one plain pass leaves it.


def test_leaves_the_model_as_plain_training_does(name: str, case: cases.Case) -> None:
    twin = copy.deepcopy(case)
    optimizer = torch.optim.AdamW(case.model.parameters())
    torch.manual_seed(3)
    before = state(case.model)
    # Where the first pass has noise, buffers are what it makes them.
    build(name, case.model, init_mag=0.0).backward(case.closure)
    after = state(case.model)
    torch.manual_seed(3)
    twin.run(twin.model, None).mean().backward()
    plain = state(twin.model)
    for key in ("weights", "identity", "buffer_identity", "hooks", "keys"):
        assert_same(after[key], before[key])
    if name not in ONE_PASS:  # whose only pass, and so the statistics, is at other weights
        assert_same(after["buffers"], plain["buffers"])  # 7. BatchNorm advanced once
    assert not optimizer.state


# 2. The same after an exception in any pass.


class Interrupted(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


def count_calls(method: Method, closure: Any) -> int:
    calls = []
    method.backward(lambda: (calls.append(0), closure())[1])
    return len(calls)


def may_use_the_engine(name: str) -> bool:
    """Whether a method takes gradients of single examples, in some of its ways."""
    return Method.registry[name.partition(":")[0]].per_example is not Method.per_example


# Lack of memory is an error like others, except where it is caught: by the engine for examples.
ERRORS = [(name, Interrupted) for name in METHODS]
ERRORS += [(name, torch.OutOfMemoryError) for name in METHODS if may_use_the_engine(name)]


@for_state_only
@pytest.mark.parametrize("where", ["before the forward", "after the forward", "in the backward"])
@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_puts_everything_back_after_an_exception(
    name: str, case: cases.Case, where: str, error: type[BaseException]
) -> None:
    # The passes of a check, in the first step, are forwards for the most part: backwards fail in a later step.
    in_first_step = where != "in the backward"
    method = build(name, case.model)
    count = count_calls(method, case.closure)
    if not in_first_step:
        count = count_calls(method, case.closure)
    now = False

    def fail_backwards(_m: Any, _i: Any, output: Any) -> None:
        logits = output if isinstance(output, Tensor) else output.logits
        if now and where == "in the backward" and logits.requires_grad:
            logits.register_hook(lambda _: (_ for _ in ()).throw(error()))

    case.model.register_forward_hook(fail_backwards)
    for failing in range(count):
        method = build(name, case.model) if in_first_step else method
        torch.manual_seed(3)
        random_before, before = torch.get_rng_state(), state(case.model)
        calls = iter(range(100))

        def closure() -> Tensor:
            nonlocal now
            now = next(calls) == failing  # noqa: B023
            if now and where == "before the forward":
                raise error
            losses = case.closure()
            if now and where == "after the forward":
                raise error
            now = False
            return losses

        if where == "in the backward" and not _gets_gradient(method, case, failing):
            continue
        known_before = copy.deepcopy(method.state_dict())
        torch.manual_seed(3)
        with pytest.raises(error):
            method.backward(closure)
        assert_same(state(case.model), before)
        assert_same(method.state_dict(), known_before)
        assert torch.equal(torch.get_rng_state(), random_before)


def _gets_gradient(method: Method, case: cases.Case, index: int) -> bool:
    """Whether a backward runs through that forward of a step: a check, or a loop, has some without."""
    forwards: list[int] = []
    reached: list[bool] = []
    before = state(case.model)

    def watch(_m: Any, _i: Any, output: Any) -> None:
        logits = output if isinstance(output, Tensor) else output.logits
        if logits.requires_grad and len(forwards) == index + 1:  # a step with a hook in the first pass is checked
            logits.register_hook(lambda _: reached.append(True))

    handle = case.model.register_forward_hook(watch)
    method.backward(lambda: (forwards.append(0), case.closure())[1])
    handle.remove()
    with torch.no_grad():
        for n, b in case.model.named_buffers():
            b.copy_(before["buffers"][n])
    return bool(reached)


# 3. .grad accumulates.


@for_state_only
def test_accumulates(name: str, case: cases.Case) -> None:
    first = gradient_of(build(name, case.model), case.closure, seed=3)
    torch.manual_seed(3)
    build(name, case.model).backward(case.closure)
    twice = {n: None if g is None else 2 * g for n, g in first.items()}
    assert relative_error(grads(case.model), twice) < 1e-12


# 4. Any scale of the loss is the scale of the gradient; an infinite ascent never reaches a weight.


@for_state_only
def test_scales_with_the_loss(name: str, case: cases.Case) -> None:
    plain = gradient_of(build(name, case.model), case.closure)
    scaled = gradient_of(build(name, case.model), lambda: 1024 * case.closure())
    assert_same(
        {n: g for n, g in scaled.items() if g is not None}, {n: 1024 * g for n, g in plain.items() if g is not None}
    )


@for_state_only
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_infinite_gradient_never_reaches_a_weight(name: str, case: cases.Case, bad: float) -> None:
    before = state(case.model)
    build(name, case.model).backward(lambda: bad * case.closure())
    after = state(case.model)
    assert_same(after["weights"], before["weights"])
    assert any(not g.isfinite().all() for g in grads(case.model).values() if g is not None)  # GradScaler sees it


@pytest.mark.parametrize("name", CLIMBING)
def test_an_infinite_ascent_skips_the_perturbation(name: str, case: cases.Case) -> None:
    """No pass is at other weights, and the gradient is that of a later pass: a plain one, finite.

    A method that adds the first pass's gradient to it has the infinity in ``.grad``, where a scaler sees it.
    """
    method = build(name, case.model)
    covered = not any(isinstance(module, nn.BatchNorm1d) for module in case.model.modules())
    alone = isinstance(method, deltasam.PerInstanceSAM) and not covered
    if method.per_example and not covered:  # it is found out in the first step that the engine does not cover it
        method.backward(case.closure)
        case.model.zero_grad()
    weights = state(case.model)["weights"]
    seen = []

    def closure() -> Tensor:
        losses = case.closure()
        if torch.is_grad_enabled():
            with torch._C.DisableTorchFunction():  # a look that the passes need not see
                seen.append(all(torch.equal(p, weights[n]) for n, p in case.model.named_parameters()))
            # One by one, each example has an ascent and a descent, after a forward that shows how many there are.
            if len(seen) == 1 or (alone and len(seen) % 2 == 0):
                losses.register_hook(lambda g: g * float("inf"))
        return losses

    step = method.backward(closure)
    skipped = f"{name}: the ascent is infinite, so that the perturbation is to be skipped"
    assert len(seen) > 1, f"{skipped}; expected a later pass, whose gradient is finite, and there is the first one only"
    moved = [number for number, at_home in enumerate(seen, 1) if not at_home]
    assert not moved, (
        f"{skipped}; expected every pass at the weights as they are, and passes {moved} were at others "
        f"(passes.at and passes.descend move nothing along a vector that is not finite as it is)"
    )
    assert metric(step, "radius_ratio") == 0.0, f"{skipped}; expected the metric radius_ratio to say so with 0"
    infinite = [n for n, g in grads(case.model).items() if g is not None and not g.isfinite().all()]
    keeps_its_slope = isinstance(method, FunctionalSAM | PerInstanceFunctionalSAM)  # in the outputs, by definition
    assert not infinite or keeps_its_slope or adds_the_first_gradient(name, case), (
        f"{skipped}; expected the finite gradient of a later pass in .grad, and that of {infinite} is not finite. "
        f"It may be for a method that adds the first pass's gradient to its own, and {name} does not: with "
        f"that gradient doubled and rho near 0 its own stays the same"
    )


def adds_the_first_gradient(name: str, case: cases.Case) -> bool:
    """Whether the first pass's gradient is a part of the method's own, and does not only show where to go.

    With hardly a perturbation, what depends on its length is what it is added to.
    """

    def with_first(factor: float) -> Callable[[], Tensor]:
        first = iter([True])

        def closure() -> Tensor:
            losses = case.closure()
            if torch.is_grad_enabled() and next(first, False):
                losses.register_hook(lambda g: g * factor)
            return losses

        return closure

    once, twice = (gradient_of(build(name, case.model, rho=1e-9), with_first(factor)) for factor in (1.0, 2.0))
    return relative_error(twice, once) > 1e-3


def metric(step: deltasam.Step, key: str) -> float:
    assert key in step.metrics, (
        f"a method with a rho reports {key!r}, as passes.descend does; there are {[*step.metrics]}"
    )
    return float(step.metrics[key])


# 5. At its neutral hyper-parameters it is plain training, dropout included.


def test_neutral_equals_erm(name: str, case: cases.Case) -> None:
    method = build(name, case.model, **Method.registry[name.partition(":")[0]].neutral)
    assert (
        relative_error(gradient_of(method, case.closure), gradient_of(build("erm", case.model), case.closure)) < 1e-12
    )


@pytest.mark.parametrize("name", [n for n in METHODS if Method.registry[n.partition(":")[0]].neutral])
def test_is_not_erm_otherwise(name: str, case: cases.Case) -> None:
    erm = gradient_of(build("erm", case.model), case.closure)
    method = build(name, case.model)
    error = relative_error(gradient_of(method, case.closure), erm)
    if name in ONE_PASS and error < 1e-12:  # the direction is from a step before
        follow(method).step()
        error = relative_error(gradient_of(method, case.closure), gradient_of(build("erm", case.model), case.closure))
    if name == "r_drop" and not any(m.p for m in case.model.modules() if isinstance(m, nn.Dropout)):
        assert error < 1e-12  # it has nothing but dropout to work with
    else:
        assert error > 1e-3


# 6. The random state advances as in one pass; later passes replay its masks.


@for_state_only
def test_random_state_advances_by_one_pass(name: str, case: cases.Case) -> None:
    def closure() -> Tensor:
        return case.closure() * (1 + random.random()) * (1 + np.random.random()) * (1 + torch.rand(()))

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    def seed() -> None:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    seed()
    closure()
    expected = draws()
    seed()
    build(name, case.model).backward(closure)
    assert draws() == expected


@for_state_only
def test_later_passes_replay_the_masks(name: str, case: cases.Case) -> None:
    method = build(name, case.model)
    drawn: list[tuple[float, float, float]] = []

    def closure() -> Tensor:
        losses = case.closure()
        drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))
        return losses

    method.backward(closure)
    assert len(set(drawn)) == 1 + method.fresh_dropout


# 8. Frozen and unused parameters keep grad None; one that is used in one pass only is restored too.


@for_state_only
def test_frozen_and_unused_parameters(name: str, case: cases.Case) -> None:
    expected = {n: g is None for n, g in gradient_of(build("erm", case.model), case.closure).items()}
    actual = {n: g is None for n, g in gradient_of(build(name, case.model), case.closure).items()}
    assert actual == expected
    assert any(expected.values()) == ("frozen.weight" in expected or any("lora" in n for n in expected))


def test_a_parameter_used_in_one_pass_only(name: str) -> None:
    case = cases.make(case_for(name, "mlp"))
    extra = case.model.register_parameter("extra", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    assert extra is None
    before = state(case.model)["weights"]
    calls = iter(range(100))

    def closure() -> Tensor:
        losses = case.closure()
        return losses * case.model.extra if next(calls) == 0 else losses

    method = build(name, case.model)
    with (
        pytest.raises(ValueError, match="beside the logits")
        if isinstance(method, FunctionalSAM | PerInstanceFunctionalSAM)
        else nullcontext()
    ):
        method.backward(closure)
    assert_same(state(case.model)["weights"], before)


# 9. A zero gradient gives finite results.


@for_state_only
def test_zero_gradient(name: str, case: cases.Case) -> None:
    step = build(name, case.model).backward(lambda: 0.0 * case.closure())
    assert all((g == 0).all() for g in grads(case.model).values() if g is not None)
    assert all(m.isfinite().all() for m in step.metrics.values())


# 10. Spec round trip, deepcopy, pickle.


def test_spec_round_trip(name: str) -> None:
    method = build(name, nn.Linear(2, 2))
    again = deltasam.make_method(method.spec, method.model)
    assert again.spec == method.spec
    assert type(again) is type(method)
    for key in deltasam.hyperparameters(type(method)):
        assert getattr(again, key) == getattr(method, key)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(name: str, duplicate: Any) -> None:
    case = cases.make(case_for(name, "mlp"))
    method = build(name, case.model)
    gradient_of(method, case.closure)
    size = len(pickle.dumps((case.model, method.state_dict())))
    twin = duplicate(method)
    case.model.zero_grad()
    assert len(pickle.dumps(method)) < size + 2000  # no other copy of the weights travels along
    for buffers in (twin.model, method.model):
        buffers.norm.reset_running_stats()
    follow(twin)  # a copied optimizer has no hooks
    expected = gradient_of(method, lambda: case.run(method.model, None))
    assert_same(gradient_of(twin, lambda: case.run(twin.model, None)), expected)


# 11. Equal to its namesake in the reference.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize(("case_name", "name", "changes"), VARIANTS, ids=str)
def test_equals_the_reference(
    name: str, case_name: str, dtype: torch.dtype, tolerance: float, changes: dict[str, Any], monkeypatch: Any
) -> None:
    known = deltasam.hyperparameters(Method.registry[name])
    case = cases.make(case_name, dtype)
    method = build(name, case.model, **changes)
    oracle, optimizer = oracle_of(name), follow(method)
    given = {k: getattr(method, k) for k in known} | random_parts(oracle, method, case, monkeypatch)
    for _ in range(4 if "memory" in given else 1):
        torch.manual_seed(3)
        given["losses"], w = reference.losses_function(case.model, lambda call: case.run(call, None))
        given["predict"], _ = reference.predict_function(case.model, lambda call: case.run(call, None), case.embedding)
        if method.fresh_dropout:
            torch.manual_seed(MASKS)
        given["again"], _ = reference.predict_function(case.model, lambda call: case.run(call, None), case.embedding)
        given |= {"w": w, "shares": case.shares.to(dtype), "lengths": case.lengths}
        expected = oracle(**{k: v for k, v in given.items() if k in inspect.signature(oracle).parameters})
        assert relative_error(gradient_of(method, case.closure), expected) < tolerance
        optimizer.step()


def random_parts(oracle: Any, method: Method, case: cases.Case, monkeypatch: Any) -> dict[str, Any]:
    """What a method draws, or has from before: it and the reference are given the same."""
    parameters = inspect.signature(oracle).parameters
    monkeypatch.setattr(Passes, "seed", lambda _: MASKS)
    made: dict[str, Any] = {}
    if "noise" in parameters:
        moving = [p for p in case.model.parameters() if p.requires_grad and (p.ndim > 1 or method.name != "flat_lora")]
        draws = [[torch.randn_like(p) for p in moving] for _ in range(2)]
        made["noise"], made["more_noise"] = draws
        turns = itertools.cycle(draws if getattr(method, "weights", "") == "curvature" else draws[:1])
        monkeypatch.setattr(method._store, "gaussian", lambda *_: next(turns))
    if "drawn" in parameters:
        width, kind = case.embedding.weight.shape[1], case.embedding.weight  # type: ignore[union-attr, index]
        table = torch.rand(cases.EXAMPLES, cases.TOKENS, width, dtype=kind.dtype)  # type: ignore[union-attr]
        real = torch.tensor([[float(t < n) for t in range(cases.TOKENS)] for n in case.lengths]).to(table)[..., None]
        monkeypatch.setattr(embeddings, "sample_noise", lambda *_: table * real)
        normal = "sigma" in parameters or getattr(method, "noise", "") == "normal"
        made["drawn"] = table * real if normal else (2 * table - 1) * real  # uniform: from (0, 1) to (-1, 1)
    if "memory" in parameters:  # it carries over from step to step
        made["memory"] = {}
    if "average" in parameters:
        away = {n: p + 0.1 * torch.randn_like(p) for n, p in case.model.named_parameters() if p.requires_grad}
        made["average"] = {n: a.detach() for n, a in away.items()}
        method.load_state_dict({"weight_average": made["average"]})
    return made


def test_exact_norms_are_refused_where_examples_meet() -> None:
    case = cases.make(MEETING)
    before, random_before = state(case.model), torch.get_rng_state()
    with pytest.raises(deltasam.NotCoveredError, match=r"(?s)DeltaSAM\(weights='norms'\).*norm: BatchNorm1d.*'slopes'"):
        build("delta_sam", case.model, weights="norms").backward(case.closure)
    assert_same(state(case.model), before)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert all(g is None for g in grads(case.model).values())


def test_auto_takes_own_curvature_where_it_can_be_had(case: cases.Case, request: pytest.FixtureRequest) -> None:
    meet = request.node.callspec.params["case"] == MEETING
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = build("delta_sam", case.model)
        found = [gradient_of(method, case.closure, seed) for seed in (3, 4)]
    said = [w for w in caught if "DeltaSAM" in str(w.message)]
    assert len(said) == meet  # once, not at every step
    if meet:
        assert said[0].category is RuntimeWarning
        assert said[0].filename == __file__  # where backward() was called
        for part in ("estimates slopes by a forward pass", "norm: BatchNorm1d in training mode"):
            assert part in str(said[0].message)
    twin = build("delta_sam", case.model, weights="slopes" if meet else "own_curvature")
    for seed, gradient in zip((3, 4), found, strict=True):
        if meet:
            case.model.norm.reset_running_stats()
        assert relative_error(gradient, gradient_of(twin, case.closure, seed)) < 1e-12


# 12, 13. Per-example quantities do not change with padding, nor with the order of the batch.


def per_example(step: deltasam.Step) -> dict[str, Tensor]:
    return {k: v for k, v in step.metrics.items() if v.ndim == 1}


def test_padding_changes_nothing(name: str) -> None:
    case = cases.make("padded")
    torch.manual_seed(3)
    short = build(name, case.model).backward(case.closure)
    before = grads(case.model)
    case.pad()
    case.model.zero_grad()
    torch.manual_seed(3)
    long = build(name, case.model).backward(case.closure)
    assert relative_error(grads(case.model), before) < 1e-10
    for key, value in per_example(short).items():
        torch.testing.assert_close(per_example(long)[key], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case_name", cases.CASES)
def test_order_changes_nothing(name: str, case_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make(case_for(name, case_name), dropout=False)
    # Every token has noise of its own, wherever it stands.
    monkeypatch.setattr(embeddings, "sample_noise", lambda _, x, real, *rest: (1e4 * x).sin() * real[..., None])
    order = torch.tensor([2, 0, 3, 1])
    torch.manual_seed(3)
    straight = build(name, case.model).backward(case.closure)
    before = grads(case.model)
    case.model.zero_grad()
    torch.manual_seed(3)
    shuffled = build(name, case.model).backward(lambda: case.run(case.model, order))
    assert relative_error(grads(case.model), before) < 1e-9
    for key, value in per_example(straight).items():
        torch.testing.assert_close(per_example(shuffled)[key], value[order], rtol=1e-7, atol=1e-9)


# Metrics tell what happened.


@pytest.mark.parametrize("name", CLIMBING)
def test_metrics(name: str, case: cases.Case) -> None:
    torch.manual_seed(3)
    plain = case.closure().mean()
    torch.manual_seed(3)
    step = build(name, case.model).backward(case.closure)
    for value in step.metrics.values():
        assert not value.requires_grad
    torch.testing.assert_close(step.loss, plain.detach())
    torch.testing.assert_close(step.metrics["loss"], plain.detach())
    assert metric(step, "perturbed_loss") > step.loss
    assert metric(step, "radius_ratio") == pytest.approx(1, abs=1e-6)
    assert metric(step, "ascent_norm") > 0
