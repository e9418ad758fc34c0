"""Per-instance SAM is exact in two passes on every common architecture; and the oracle that says so is right."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import architectures
import deltasam
from architectures import ALL, ARCHITECTURES, EXAMPLES, Case
from deltasam import reference

RHO = 0.3
SEED = 3
# Those where an example's loss is its own, and there is one.
APART = [name for name in ARCHITECTURES if "siamese" not in name and "own_loss" not in name]
DROPOUT = 0.2
HOME = str(Path(deltasam.__file__).parent)
Weights = dict[str, Tensor]


def copies_of(case: Case, rows: slice = ALL) -> tuple[reference.LossesOfCopies, Weights]:
    torch.manual_seed(SEED)
    return reference.copies_function(case.plain, lambda call: case.run(call, rows))


@functools.cache
def expected(name: str, m: int, dtype: torch.dtype = torch.float64, dropout: float = DROPOUT) -> tuple[Weights, Tensor]:
    """Gradient and norms per group, from own copies."""
    losses, weights = copies_of(architectures.make(name, dtype, dropout))
    return reference.per_instance_sam_of_copies(losses, weights, rho=RHO, groups=EXAMPLES // m)


def error(actual: dict[str, Tensor | None], wanted: Weights) -> float:
    a = torch.cat(
        [torch.zeros_like(w).flatten() if actual[n] is None else actual[n].flatten() for n, w in wanted.items()]
    )
    b = torch.cat([w.flatten() for w in wanted.values()])
    return float((a - b).norm() / b.norm())


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {n: p.grad for n, p in model.named_parameters()}


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=0)


def step_of(case: Case, m: int, **options: Any) -> tuple[deltasam.Step, int, list[str]]:
    """The second of two equal steps, how many forwards it took, and what the library complained about in both."""
    calls: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = deltasam.PerInstanceSAM(case.model, rho=RHO, m=m, **options)
        for _ in range(2):  # the first is checked
            case.model.zero_grad()
            calls.clear()
            torch.manual_seed(SEED)
            step = method.backward(lambda: (calls.append(0), case.closure())[1])
    complaints = [str(w.message) for w in caught if w.filename.startswith(HOME) or "SAM" in str(w.message)]
    return step, len(calls), complaints


def assert_equals_own_copies(case: Case, step: deltasam.Step, tolerance: float, wanted: tuple[Weights, Tensor]) -> None:
    gradient, norms = wanted
    assert error(grads(case.model), gradient) < tolerance
    assert_norms(case, step.metrics["group_grad_norms"], norms * len(norms) / EXAMPLES, tolerance)


def assert_norms(case: Case, actual: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Of one loss the scale is a convention, as every factor of it cancels: only proportions are compared."""
    assert actual.shape == wanted.shape
    if case.one:
        actual, wanted = actual / actual.sum(), wanted / wanted.sum()
    assert_close(actual, wanted, tolerance)


# The method


@pytest.mark.parametrize("m", [1, 2, EXAMPLES])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_own_copies_in_two_passes(name: str, m: int) -> None:
    case = architectures.make(name)
    step, forwards, complaints = step_of(case, m)
    assert complaints == []
    assert forwards == 2
    assert_equals_own_copies(case, step, case.tolerance, expected(name, m))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32(name: str) -> None:
    case = architectures.make(name, torch.float32)
    step, _, complaints = step_of(case, 1)
    assert complaints == []
    assert_equals_own_copies(case, step, 1e-4, expected(name, 1, torch.float32))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_of_the_examples(name: str) -> None:
    case = architectures.make(name)
    torch.manual_seed(SEED)
    norms = deltasam.per_example_grad_norms(case.model, case.closure)
    assert_norms(case, norms, expected(name, 1)[1], case.tolerance)
    assert all(g is None for g in grads(case.model).values())


@pytest.mark.parametrize("name", APART)
def test_micro_batches_change_nothing(name: str) -> None:
    case = architectures.make(name, dropout=0.0)
    method = deltasam.PerInstanceSAM(case.model, rho=RHO)
    for half in (slice(0, 2), slice(2, 4)):
        method.backward(lambda: case.run(case.model, half) / 2)  # noqa: B023
    assert error(grads(case.model), expected(name, 1, dropout=0.0)[0]) < case.tolerance


def traces(model: nn.Module) -> list[Any]:
    """Where something could have been left: attributes, hooks, keys, parameters."""

    def contents(owner: Any) -> dict[str, Any]:
        return {
            key: {k: id(v) for k, v in value.items()} if isinstance(value, dict) else id(value)
            for key, value in vars(owner).items()
        }

    modules = {name: (type(module), contents(module)) for name, module in model.named_modules()}
    parameters = {n: (id(p), p.data_ptr(), contents(p), p._backward_hooks) for n, p in model.named_parameters()}
    return [modules, parameters, list(model.state_dict())]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_leaves_no_trace(name: str) -> None:
    case = architectures.make(name)
    torch.manual_seed(SEED)
    case.closure()  # some models keep things of their own
    random, before = torch.get_rng_state(), traces(case.model)
    weights = {n: t.clone() for n, t in case.model.state_dict().items()}
    step_of(case, 1)
    assert traces(case.model) == before
    assert all(torch.equal(t, weights[n]) for n, t in case.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


# The oracle


@pytest.mark.parametrize("m", [1, 2, EXAMPLES])
@pytest.mark.parametrize("name", APART)
def test_own_copies_equal_the_reference_where_examples_do_not_meet(name: str, m: int) -> None:
    case = architectures.make(name)
    torch.manual_seed(SEED)
    losses, weights = reference.losses_function(case.plain, lambda call: case.run(call, ALL))
    one_by_one = reference.per_instance_sam(losses, weights, rho=RHO, m=m)
    assert error(one_by_one, expected(name, m)[0]) < (1e-7 if case.single else 1e-12)


@pytest.mark.parametrize("name", APART)
def test_own_copies_equal_one_example_alone(name: str) -> None:
    case = architectures.make(name, dropout=0.0)
    total: Weights = {}
    norms = []
    for i in range(EXAMPLES):
        losses, weights = copies_of(case, slice(i, i + 1))
        gradient, norm = reference.per_instance_sam_of_copies(losses, weights, rho=RHO, groups=1)
        total = {n: total.get(n, 0) + g / EXAMPLES for n, g in gradient.items()}
        norms.append(norm)
    gradient, of_groups = expected(name, 1, dropout=0.0)
    assert error(total, gradient) < (1e-6 if case.single else 1e-11)
    assert_close(torch.cat(norms), of_groups, 1e-6 if case.single else 1e-11)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_copy_is_sam(name: str) -> None:
    """With one copy for all nothing is taken apart: SAM of the loss that the closure really returns."""
    case = architectures.make(name)
    torch.manual_seed(SEED)
    losses, weights = reference.losses_function(case.plain, lambda call: loss_of(case, call))
    assert error(reference.sam(losses, weights, rho=RHO), expected(name, EXAMPLES)[0]) < (
        1e-7 if case.single else 1e-12
    )


def loss_of(case: Case, call: Any) -> Tensor:
    return case.own(call).loss if case.own else case.run(call, ALL)


class Meeting(nn.Module):
    """Few weights, so that a numerical derivative is quick; dropout, so that a replay of the wrong masks shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"z": torch.tanh(self.linear(self.dropout(x)))}


def test_own_copies_where_examples_meet() -> None:
    """Against a central difference of one copy's weights, with the rows picked by hand."""
    model = Meeting().double()
    x = torch.randn(2, 3, 3, dtype=torch.float64)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.cross_entropy(a @ b.T, torch.arange(3), reduction="none")

    masks = torch.get_rng_state()
    losses, w = reference.copies_function(model, lambda call: loss(call(x[0])["z"], call(x[1])["z"]))
    _, norms = reference.per_instance_sam_of_copies(losses, w, rho=RHO, groups=3)

    def by_hand(i: int, direction: Weights, factor: float) -> Tensor:
        """The sum of the losses with example i's weights moved."""
        torch.set_rng_state(masks)
        dropped = [model.dropout(part) for part in x]
        rows = [[], []]
        for side, part in enumerate(dropped):
            for j, row in enumerate(part):
                v = {n: t + (factor * direction[n] if j == i else 0) for n, t in w.items()}
                rows[side].append(torch.tanh(v["linear.weight"] @ row + v["linear.bias"]))
        return loss(torch.stack(rows[0]), torch.stack(rows[1])).sum().detach()

    for i in range(3):
        slopes = [(by_hand(i, d, 1e-5) - by_hand(i, d, -1e-5)) / 2e-5 for d in unit_vectors(w)]
        assert_close(norms[i], torch.stack(slopes).norm(), 1e-8)


def unit_vectors(w: Weights) -> Iterator[Weights]:
    for name, tensor in w.items():
        for k in range(tensor.numel()):
            yield {n: torch.zeros_like(t) for n, t in w.items()} | {name: one_hot(k, tensor)}


def one_hot(k: int, like: Tensor) -> Tensor:
    vector = torch.zeros_like(like).flatten()
    vector[k] = 1
    return vector.view_as(like).detach()


def test_a_module_with_two_names_keeps_its_tied_weight() -> None:
    """As T5's and BART's embedding, which is the head's weight too."""
    model = nn.Module()
    model.first = model.second = nn.Embedding(5, 3)
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.first.weight
    model.forward = lambda ids: model.head(model.second(ids))
    losses, weights = reference.copies_function(model, lambda call: call(torch.arange(4)).square().sum(1))
    gradients = [torch.autograd.grad(losses([weights]).sum(), weights["first.weight"])[0] for _ in range(2)]
    model(torch.arange(4)).square().sum().backward()
    assert model.first.weight is model.head.weight
    assert all(torch.equal(g, model.head.weight.grad) for g in gradients)


def test_a_loss_inside_the_model_cannot_be_taken_apart() -> None:
    case = architectures.make("bert_own_loss")
    losses, weights = reference.copies_function(case.model, lambda call: case.own(call).loss)
    with pytest.raises((RuntimeError, IndexError)):
        losses([weights, weights])


# The cases


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_case_is_reproducible_and_has_clear_gradients(name: str) -> None:
    case = architectures.make(name)
    assert case.model.training
    losses = []
    for _ in range(2):
        torch.manual_seed(SEED)
        losses.append(deltasam.core.closure.loss_of(case.closure()))
    assert torch.equal(losses[0], losses[1])
    torch.manual_seed(SEED + 1)
    assert not torch.equal(deltasam.core.closure.loss_of(case.closure()), losses[0])  # dropout is on
    losses[0].backward()
    reached = {n: g for n, g in grads(case.model).items() if g is not None}
    assert all(g.isfinite().all() for g in reached.values())
    norms = expected(name, 1)[1]
    assert (norms > 1e-2 * norms.max()).all()
    assert error(expected(name, EXAMPLES)[0], expected(name, 1)[0]) > 0.05  # a perturbation of one's own matters
    # A softmax does not see what is added to all its scores: keys have no use for a bias, nor has a choice.
    zero = [
        n for n, g in reached.items() if not g.norm() > 1e-6 and not re.search(r"(key|k_proj|k_lin|attn\.k)\.bias", n)
    ]
    assert zero == (["classifier.bias"] if "choice" in name else [])


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if "own_loss" in n])
def test_the_models_own_loss_is_the_one_outside(name: str) -> None:
    case = architectures.make(name)
    torch.manual_seed(SEED)
    own = case.closure().loss
    torch.manual_seed(SEED)
    torch.testing.assert_close(case.run(case.model, ALL), own)


class Single(TorchFunctionMode):
    """Sees results in float32 that a gradient flows through."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32 and result.requires_grad and result.numel():
            self.seen.add(getattr(func, "__name__", str(func)))
        return result


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tolerance_is_wide_only_where_float32_is_used_inside(name: str) -> None:
    case = architectures.make(name)
    with Single() as mode:
        loss_of(case, case.model)
    assert bool(mode.seen) == bool(case.single), mode.seen
