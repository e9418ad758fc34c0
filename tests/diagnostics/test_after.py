"""Rounded, pruned and noisy weights beside a slow computation of each, and the weights after it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltasam.diagnostics import AfterChange, after_noise, after_pruning, after_rounding, after_training, plot_after

MEASURES: dict[str, Callable[..., AfterChange]] = {
    "rounding": after_rounding,
    "pruning": after_pruning,
    "pruning within the model": lambda m, e, **more: after_pruning(m, e, within="model", **more),
    "noise": after_noise,
}
every = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())


class Network(nn.Module):
    """An embedding, a convolution, a frozen linear layer, norms, and an output layer with the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6)
        self.convolution = nn.Conv1d(6, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 6).requires_grad_(False)
        self.output = nn.Linear(6, 11)
        self.output.weight = self.embedding.weight
        self.register_buffer("table", torch.randn(3, 3))
        with torch.no_grad():
            self.frozen.weight[2] = 0


MATRICES = ("convolution.weight", "frozen.weight")
TIED = "embedding.weight"


def seen(model: nn.Module, measure: Callable[..., AfterChange], **more: Any) -> list[dict[str, Tensor]]:
    """The state of the model at each evaluation, the first as it came."""
    states: list[dict[str, Tensor]] = []

    def evaluate() -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"calls": len(states)}

    measure(model, evaluate, **more)
    return states


def same(a: Tensor, b: Tensor) -> bool:
    bits = (t.detach().flatten().view(torch.uint8) for t in (a, b))
    return a.dtype == b.dtype and torch.equal(*bits)


@every
@pytest.mark.parametrize("embeddings", [False, True])
def test_matrices_change_once_and_nothing_else_does(measure: Callable[..., AfterChange], embeddings: bool) -> None:
    before, *changed = seen(Network(), measure, embeddings=embeddings)
    wanted = {*MATRICES, *([TIED, "output.weight"] if embeddings else [])}
    for state in changed:
        assert {name for name in state if not torch.equal(state[name], before[name])} <= wanted
        assert torch.equal(state[TIED], state["output.weight"])
    assert {name for name in before if not torch.equal(changed[-1][name], before[name])} == wanted


def test_rounding_by_hand() -> None:
    """Each row by itself: no farther than half a step, on as many values as the bits have, the largest kept."""
    model = Network()
    before, *changed = seen(model, after_rounding, bits=(8, 4, 3, 2))
    for bits, state in zip((8, 4, 3, 2), changed, strict=True):
        for name in MATRICES:
            for old, new in zip(before[name].flatten(1), state[name].flatten(1), strict=True):
                step = float(old.abs().max()) / (2 ** (bits - 1) - 1)
                expected = [round(x / step) * step if step else 0.0 for x in old.tolist()]
                assert new.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
                assert float((old - new).abs().max()) <= step / 2 * (1 + 1e-4)
                assert float(new.abs().max()) == pytest.approx(float(old.abs().max()), rel=1e-6)
                assert len(new.unique()) <= 2**bits - 1


@pytest.mark.parametrize("within", ["matrix", "model"])
def test_pruning_by_hand(within: str) -> None:
    before, *changed = seen(Network(), after_pruning, shares=(0, 0.3, 0.5, 0.6), within=within)
    for share, state in zip((0, 0.3, 0.5, 0.6), changed, strict=True):
        for group in [[name] for name in MATRICES] if within == "matrix" else [list(MATRICES)]:
            entries = [(abs(float(x)), i) for name in group for i, x in enumerate(before[name].flatten())]
            old = torch.cat([before[name].flatten() for name in group])
            order = sorted(range(len(entries)), key=lambda i: (entries[i][0], i))
            expected = old.clone()
            expected[order[: round(share * len(old))]] = 0
            assert torch.equal(torch.cat([state[name].flatten() for name in group]), expected)


def test_exactly_so_many_are_pruned_where_many_are_equal() -> None:
    model = nn.Linear(10, 10, bias=False)
    nn.init.constant_(model.weight, -2.0)
    _, *changed = seen(model, after_pruning)
    assert [int((state["weight"] == 0).sum()) for state in changed] == [30, 50, 60]
    assert {float(x) for x in changed[-1]["weight"].unique()} == {0.0, -2.0}


def test_noise_by_hand() -> None:
    """The draws of a seed, the same for each scale, in units of each matrix's root mean square."""
    before, *changed = seen(Network(), after_noise, scales=(0.1, 0.3), draws=3, seed=7)
    states = iter(changed)
    for scale in (0.1, 0.3):
        generator = torch.Generator().manual_seed(7)
        for state in (next(states) for _ in range(3)):
            for name in MATRICES:
                old = before[name]
                size = math.sqrt(sum(float(x) ** 2 for x in old.flatten()) / old.numel())
                noise = torch.randn(old.shape, generator=generator)
                torch.testing.assert_close(state[name], old + scale * size * noise, rtol=1e-5, atol=1e-7)
    assert next(states, None) is None


def test_the_size_of_noise_is_relative() -> None:
    torch.manual_seed(0)
    model = nn.Linear(200, 300)
    before, *changed = seen(model, after_noise, scales=(0.2,))
    for state in changed:
        moved = (state["weight"] - before["weight"]).norm() / before["weight"].norm()
        assert float(moved) == pytest.approx(0.2, rel=0.02)


def test_means_and_errors_are_over_the_draws() -> None:
    values = iter([5.0, 1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    found = after_noise(nn.Linear(2, 2), lambda: {"score": next(values)}, scales=(0.1, 0.2), draws=3, seed=1)
    assert found.before == {"score": 5.0}
    assert [level.name for level in found.levels] == ["noise 0.1", "noise 0.2"]
    assert [level.metrics["score"] for level in found.levels] == [3.0, 1.0]
    errors = [statistics.stdev(x) / math.sqrt(3) for x in ([1.0, 2.0, 6.0], [0.0, 0.0, 3.0])]
    assert [level.errors["score"] for level in found.levels] == pytest.approx(errors)


def test_metrics_that_are_no_numbers_stay_so() -> None:
    values = iter([1.0, math.nan, 1.0, math.inf, 1.0])
    found = after_noise(nn.Linear(2, 2), lambda: {"loss": next(values)}, draws=2)
    assert math.isnan(found.levels[0].metrics["loss"])
    assert found.levels[1].metrics["loss"] == math.inf
    assert not any(math.isfinite(level.errors["loss"]) for level in found.levels)


def test_other_seeds_are_other_noise_and_the_same_is_the_same() -> None:
    def weights(seed: int) -> Tensor:
        return torch.stack([state["frozen.weight"] for state in seen(Network(), after_noise, seed=seed)[1:]])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    first = weights(0)
    assert not torch.equal(first[0], first[1])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("failing", [None, 1, 2, 3])
def test_everything_is_put_back(measure: Callable[..., AfterChange], dtype: torch.dtype, failing: int | None) -> None:
    """Weights, gradients and buffers, bit for bit, in the same memory; also after an error in an evaluation."""
    model = Network().to(dtype)
    with torch.no_grad():
        model.convolution.weight[0, 0, 0] = -0.0
    model.convolution.weight.grad = torch.ones_like(model.convolution.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = [p.data_ptr() for p in model.parameters()]
    random_state = torch.get_rng_state()
    calls = []

    def evaluate() -> dict[str, float]:
        calls.append(0)
        model.norm.running_mean.add_(1)
        torch.rand(1)
        model.convolution.weight.grad = None
        if len(calls) == failing:
            raise KeyboardInterrupt
        return {"x": 1.0}

    if failing is None:
        measure(model, evaluate)
        assert len(calls) > 3
    else:
        with pytest.raises(KeyboardInterrupt):
            measure(model, evaluate)
    assert all(same(value, before[name]) for name, value in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == places
    assert model.output.weight is model.embedding.weight
    assert [p.requires_grad for p in model.frozen.parameters()] == [False, False]
    assert torch.equal(model.convolution.weight.grad, torch.ones_like(model.convolution.weight))
    assert torch.equal(torch.get_rng_state(), random_state)


@every
def test_half_precision_is_changed_in_single(measure: Callable[..., AfterChange]) -> None:
    """What bf16 weights become is what their values in 32 bits become, rounded once."""
    half = Network().bfloat16()
    for a, b in zip(seen(half, measure), seen(Network().bfloat16().float(), measure), strict=True):
        for name in MATRICES:
            assert torch.equal(a[name], b[name].bfloat16())


def test_parameters_of_one_memory_get_noise_once() -> None:
    """Two objects, as some frameworks leave tied weights."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    before, *changed = seen(model, after_noise, draws=2)
    single = nn.Sequential(nn.Linear(4, 4))
    single.load_state_dict({name: before[name] for name in ("0.weight", "0.bias")})
    for state, alone in zip(changed, seen(single, after_noise, draws=2)[1:], strict=True):
        assert torch.equal(state["0.weight"], alone["0.weight"])
        assert torch.equal(state["1.weight"], alone["0.weight"])


@every
def test_an_evaluation_sees_the_same_random_state_each_time(measure: Callable[..., AfterChange]) -> None:
    found = measure(Network(), lambda: {"draw": float(torch.rand(1))})
    assert {level.metrics["draw"] for level in found.levels} == {found.before["draw"]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, e: after_rounding(m, e, bits=(1,)), r"after_rounding\(bits=1\).*2 or more"),
        (lambda m, e: after_pruning(m, e, shares=(1.0,)), r"after_pruning\(shares=1.0\).*below 1"),
        (lambda m, e: after_pruning(m, e, within="layer"), r"within must be one of 'matrix', 'model'"),
        (lambda m, e: after_noise(m, e, scales=(0.0,)), r"after_noise\(scales=0.0\).*above 0"),
        (lambda m, e: after_noise(m, e, draws=1), r"after_noise\(draws=1\).*2 or more"),
        (lambda m, e: after_rounding(nn.LayerNorm(3), e), "no weight matrix beside embeddings; embeddings=True"),
        (lambda m, e: after_noise(nn.Embedding(3, 3), e), "no weight matrix beside embeddings; embeddings=True"),
        (lambda m, e: after_rounding(nn.LayerNorm(3), e, embeddings=True), "no weight matrix$"),
        (lambda m, e: after_pruning(m, dict), "gave no metric"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Network(), lambda: {"x": 1.0})


def test_all_of_them_together() -> None:
    states: list[Tensor] = []
    model = Network()

    def evaluate() -> dict[str, float]:
        states.append(model.frozen.weight.clone())
        return {"size": float(model.frozen.weight.norm())}

    found = after_training(model, evaluate, seed=3)
    assert found == (
        after_rounding(model, evaluate),
        after_pruning(model, evaluate),
        after_noise(model, evaluate, seed=3),
    )
    assert len(states) == 2 * 17
    assert "size" in found[0].reading
    assert "(3 bits)" in found[0].reading
    assert "no evidence" in found[2].reading


def test_plot() -> None:
    values = iter(range(100))
    evaluate = lambda: {"accuracy": next(values) / 100, "loss": 1.0}  # noqa: E731
    noise = {name: after_noise(nn.Linear(2, 2), evaluate, draws=2) for name in ("a", "b")}
    ax = plot_after(noise)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["as trained", "noise 0.1", "noise 0.2"]
    assert ax.get_ylabel() == "accuracy"
    line = ax.containers[1].lines[0]
    result = noise["b"]
    assert list(line.get_ydata()) == [0.05, *(level.metrics["accuracy"] for level in result.levels)]
    bars = [top - bottom for (_, bottom), (_, top) in ax.containers[1].lines[2][0].get_segments()]
    assert bars == pytest.approx([0.0, *(2 * level.errors["accuracy"] for level in result.levels)])
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"a", "b"}
    assert plot_after(noise["a"], "loss").get_ylabel() == "loss"
    with pytest.raises(ValueError, match="different changes or amounts"):
        plot_after({**noise, "c": after_noise(nn.Linear(2, 2), evaluate, scales=(0.1, 0.3), draws=2)})
