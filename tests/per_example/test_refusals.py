"""What two passes cannot describe is refused by name, changes nothing, and has two ways out that do what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import deltasam
import per_instance
from hidden_product import Hidden
from per_instance import RHO, Losses, everything, expected, same, take

Problem = tuple[nn.Module, Losses]
N, T, D, C = 4, 6, 8, 3


def of_numbers(model: nn.Module, *shape: int) -> Problem:
    x, y = torch.randn(N, *shape, dtype=torch.float64), torch.randint(0, C, (N,))
    return model.double(), lambda call: F.cross_entropy(call(x), y, reduction="none")


def of_tokens(model: nn.Module) -> Problem:
    ids, y = torch.randint(0, 9, (N, T)), torch.randint(0, C, (N,))
    return model.double(), lambda call: F.cross_entropy(call(ids), y, reduction="none")


def batch_norm() -> Problem:
    return of_numbers(nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.Tanh(), nn.Linear(D, C)), D)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, D), nn.MultiheadAttention(D, 2, batch_first=True, add_zero_attn=True)
        self.head = nn.Linear(D, C)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.mix(x, x, x)[0].mean(1))


def multihead_attention() -> Problem:
    return of_tokens(Attention())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(9, D), nn.LSTM(D, D, batch_first=True), nn.Linear(D, C)

    def forward(self, ids: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), torch.tensor([T, 5, 5, 1]), batch_first=True)
        return self.head(self.rnn(packed)[1][0][0])


def packed_lstm() -> Problem:
    return of_tokens(Recurrent())


class Custom(nn.Module):
    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(D, D), nn.Linear(D, C)
        self.scale = nn.Parameter(torch.full((D,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Hidden.apply(torch.tanh(self.first(x)), self.scale))


class HiddenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradients[0] @ w.T, x.T @ gradients[0]


class SeenAndHidden(nn.Module):
    """One use of the weight is seen, the other is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(HiddenProduct.apply(torch.tanh(self.first(x)), self.first.weight))


def seen_and_hidden() -> Problem:
    return of_numbers(SeenAndHidden(), D)


def custom_function() -> Problem:
    return of_numbers(Custom(), D)


def embedding_by_frequency() -> Problem:
    return of_tokens(nn.Sequential(nn.Embedding(9, D, scale_grad_by_freq=True), Mean(), nn.Linear(D, C)))


def embedding_with_max_norm() -> Problem:
    return of_tokens(nn.Sequential(nn.Embedding(9, D, max_norm=100.0), Mean(), nn.Linear(D, C)))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class OneByOne(nn.Module):
    """The examples are not an axis, but a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear, self.head = nn.Embedding(9, D), nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.stack([torch.tanh(self.linear(row)).mean(0) for row in self.embed(ids)]))


def loop_over_examples() -> Problem:
    return of_tokens(OneByOne())


class Mapped(OneByOne):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.vmap(lambda row: torch.tanh(self.linear(row)))(self.embed(ids)).mean(1))


def mapped_inside() -> Problem:
    return of_tokens(Mapped())


def scripted() -> Problem:
    first = torch.jit.trace(nn.Linear(D, D).double(), torch.zeros(2, D).double())
    return of_numbers(nn.Sequential(first, nn.Tanh(), nn.Linear(D, C)), D)


class Bag(nn.Module):
    """All bags one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, D, mode="sum"), nn.Linear(D, C)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(ids.flatten(), torch.arange(0, N * T, T))))


def bags_with_offsets() -> Problem:
    return of_tokens(Bag())


class Experts(nn.Module):
    """Each expert sees the tokens that are sent to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, D), nn.Linear(D, C)
        self.experts = nn.ModuleList([nn.Linear(D, D) for _ in range(2)])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            chosen = ids % 2 == i
            out[chosen] = expert(x[chosen])
        return self.head(torch.tanh(out).mean(1))


def experts() -> Problem:
    model, run = of_tokens(Experts())
    return model, run


class Flat(nn.Module):
    """Tokens one after the other; sums over examples where told."""

    def __init__(self, *, pools: bool) -> None:
        super().__init__()
        self.embed, self.linear, self.head = nn.Embedding(9, D), nn.Linear(D, D), nn.Linear(D, C)
        self.pools = pools

    def forward(self, ids: Tensor, owner: Tensor) -> Tensor:
        x = torch.tanh(self.linear(self.embed(ids)))
        if self.pools:
            x = x.new_zeros(N, D).index_add(0, owner, x)
        return self.head(x)


LENGTHS = torch.tensor([1, 5, 3, 3])  # 12 tokens: 4 examples divide them, but not in turn


def unpadded(*, pools: bool) -> Problem:
    owner = torch.arange(N).repeat_interleave(LENGTHS)
    ids, y = torch.randint(0, 9, (12,)), torch.randint(0, C, (N,))

    def run(call: Callable[..., Any]) -> Tensor:
        scores = call(ids, owner)
        if pools:
            return F.cross_entropy(scores, y, reduction="none")
        tokens = F.cross_entropy(scores, y[owner], reduction="none")
        return tokens.new_zeros(N).index_add(0, owner, tokens) / LENGTHS

    return Flat(pools=pools).double(), run


def unpadded_pooled_inside() -> Problem:
    return unpadded(pools=True)


def unpadded_pooled_in_the_loss() -> Problem:
    return unpadded(pools=False)


def packed() -> Problem:
    """Two examples in every row."""
    model = nn.Sequential(nn.Embedding(9, D), nn.Linear(D, C)).double()
    ids, y = torch.randint(0, 9, (N // 2, T)), torch.randint(0, C, (N // 2, T))

    def run(call: Callable[..., Any]) -> Tensor:
        losses = F.cross_entropy(call(ids).transpose(1, 2), y, reduction="none")
        return losses.view(N, T // 2).mean(1)

    return model, run


def pairs_in_one_call() -> Problem:
    """First all texts, then all their partners: the rows of an example are not next to each other."""
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)).double()
    a, b = torch.randn(2, N, D, dtype=torch.float64)

    def run(call: Callable[..., Any]) -> Tensor:
        left, right = call(torch.cat([a, b])).chunk(2)
        return F.cosine_similarity(left, right)

    return model, run


def time_major() -> Problem:
    """Time is the first axis, and as if to fool us a multiple of the batch."""
    model = nn.Sequential(nn.Embedding(9, D), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)).double()
    ids, y = torch.randint(0, 9, (2 * N, N)), torch.randint(0, C, (2 * N, N))
    return model, lambda call: F.cross_entropy(call(ids).transpose(1, 2), y, reduction="none").mean(0)


def time_major_pooled() -> Problem:
    """As long as the batch is large."""
    model = nn.Sequential(nn.Embedding(9, D), nn.Linear(D, D), nn.Tanh(), First(), nn.Linear(D, C)).double()
    ids, y = torch.randint(0, 9, (N, N)), torch.randint(0, C, (N,))
    return model, lambda call: F.cross_entropy(call(ids), y, reduction="none")


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


# How it is refused, and the parameters that are named; none where examples meet, so that there is nothing to skip.
REFUSED: dict[Callable[[], Problem], tuple[str, list[str]]] = {
    batch_norm: (r"\n  1: BatchNorm1d in training mode", []),
    multihead_attention: (
        r"mix\.in_proj_weight.*use nn\.Linear layers and F\.scaled_dot_product_attention",
        ["mix.in_proj_weight", "mix.in_proj_bias", "mix.out_proj.weight", "mix.out_proj.bias"],
    ),
    packed_lstm: (
        r"rnn\.weight_ih_l0.*pad instead of packing",
        ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"],
    ),
    custom_function: (r"scale: has a gradient that its uses do not explain", ["scale"]),
    seen_and_hidden: (r"first\.weight: has a gradient that its uses do not explain", ["first.weight"]),
    embedding_by_frequency: (r"0\.weight: scale_grad_by_freq", ["0.weight"]),
    embedding_with_max_norm: (r"0\.weight: max_norm", []),
    loop_over_examples: (r"linear\.weight.*meets 6 rows, which 4 examples do not divide", []),
    mapped_inside: (r"linear\.weight", ["linear.weight", "linear.bias"]),
    scripted: (r"0\.weight, 0\.bias: has a gradient that its uses do not explain", ["0.weight", "0.bias"]),
    bags_with_offsets: (r"bag\.weight: embedding_bag cannot be run with a copy for each example", ["bag.weight"]),
    experts: (r"experts\.0\.weight", []),
    unpadded_pooled_inside: (r"head\.weight.*examples interact inside the model", []),
    unpadded_pooled_in_the_loss: (r"embed\.weight.*meets rows .*belong to 4 examples in turn", []),
    packed: (r"0\.weight.*meets 2 rows, which 4 examples do not divide", []),
    pairs_in_one_call: (r"0\.weight.*meets rows .*belong to 4 examples in turn", []),
    time_major: (r"0\.weight.*meets rows .*belong to 4 examples in turn", []),
    time_major_pooled: (r"\.weight.*examples interact inside the model", []),
}
every = pytest.mark.parametrize("problem", REFUSED, ids=lambda f: f.__name__)


@every
def test_is_refused_by_name(problem: Callable[[], Problem]) -> None:
    model, run = problem()
    before = everything(model)
    torch.manual_seed(per_instance.SEED)
    random = torch.get_rng_state()
    with pytest.raises(deltasam.NotCoveredError, match=REFUSED[problem][0]) as caught:
        deltasam.PerInstanceSAM(model).backward(lambda: run(model))
    for way_out in ("freeze", "unsupported='skip'", "unsupported='loop'", "SAM or DeltaSAM"):
        assert way_out in str(caught.value)
    after = everything(model)
    assert same((*after[:3], after[4]), (*before[:3], before[4]))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("problem", [f for f in REFUSED if f is not embedding_with_max_norm], ids=lambda f: f.__name__)
def test_goes_one_by_one_where_told(problem: Callable[[], Problem]) -> None:
    model, run = problem()
    wanted = expected(model, run)
    taken = take(model, run, unsupported="loop", steps=3)
    assert per_instance.error(taken.gradient, wanted) < 1e-10
    assert taken.forwards == 1 + 2 * N
    assert len(taken.warnings) == 1
    assert "goes one example at a time" in taken.warnings[0]


@pytest.mark.parametrize("problem", [f for f, (_, names) in REFUSED.items() if names], ids=lambda f: f.__name__)
def test_leaves_these_unperturbed_where_told(problem: Callable[[], Problem]) -> None:
    model, run = problem()
    names = REFUSED[problem][1]
    wanted = expected(model, run, held=names)
    method = deltasam.PerInstanceSAM(model, rho=RHO, unsupported="skip")
    for _ in range(2):
        model.zero_grad()
        method.backward(lambda: run(model))
        assert per_instance.error({n: p.grad for n, p in model.named_parameters()}, wanted) < 1e-10
    rows = {row.parameter: row for row in method.coverage()}
    assert [name for name, row in rows.items() if not row.exact] == [n for n in rows if n in names]
    assert all(rows[name].why for name in names)


@pytest.mark.parametrize(
    "problem",
    [
        f
        for f, (_, names) in REFUSED.items()
        if not names and f not in (experts, packed, loop_over_examples, embedding_with_max_norm)
    ],
)
def test_examples_that_meet_cannot_be_left_out(problem: Callable[[], Problem]) -> None:
    model, run = problem()
    with pytest.raises(deltasam.NotCoveredError, match=REFUSED[problem][0]):
        take(model, run, unsupported="skip")


# The refusal must not hang on the numbers of one batch.


def test_a_hidden_use_is_seen_though_its_gradient_is_zero_today() -> None:
    model, run = of_numbers(Custom(), D)
    torch.nn.init.zeros_(model.head.weight)  # nothing gets through: as in LoRA before the first step
    with pytest.raises(deltasam.NotCoveredError, match=r"scale: has a gradient"):
        take(model, run)


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_a_gradient_that_shows_nothing_is_no_proof(factor: float) -> None:
    harmless, hidden = of_numbers(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)), D)
    method = deltasam.PerInstanceSAM(harmless, rho=RHO)
    method.backward(lambda: factor * hidden(harmless))  # no error: a loss scale may be too large at first
    method.backward(lambda: hidden(harmless))
    model, run = seen_and_hidden()
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    scales = [torch.tensor(1.0), torch.tensor(factor)]  # as tensors: another number would be something new

    def closure() -> Tensor:
        return scales[-1] * run(model)

    if factor:  # else the graph has shown it already
        method.backward(closure)
    scales.pop()
    with pytest.raises(deltasam.NotCoveredError, match=r"first\.weight: has a gradient"):
        method.backward(closure)


def test_a_layout_that_changes_is_looked_at_again() -> None:
    """Equal lengths are fine; unequal ones are not, even if the number of rows divides."""
    model = Flat(pools=False).double()
    method = deltasam.PerInstanceSAM(model, rho=RHO)

    def backward(lengths: list[int]) -> None:
        owner = torch.arange(N).repeat_interleave(torch.tensor(lengths))
        ids, y = torch.randint(0, 9, (len(owner),)), torch.randint(0, C, (len(owner),))

        def losses() -> Tensor:
            tokens = F.cross_entropy(model(ids, owner), y, reduction="none")
            return tokens.new_zeros(N).index_add(0, owner, tokens)

        method.backward(losses)

    backward([2, 2, 2, 2])
    backward([3, 3, 3, 3])
    with pytest.raises(deltasam.NotCoveredError, match="belong to 4 examples in turn"):
        backward([1, 7, 5, 3])


def test_experts_are_looked_at_again_when_the_tokens_change() -> None:
    model = Experts().double()
    method = deltasam.PerInstanceSAM(model, rho=RHO)

    def backward(ids: Tensor) -> None:
        method.backward(lambda: F.cross_entropy(model(ids), torch.zeros(N).long(), reduction="none"))

    backward(torch.tensor([[1, 2]] * N))  # one token of every example for each expert: exact
    with pytest.raises(deltasam.NotCoveredError, match=r"experts\.0"):
        backward(torch.tensor([[2, 4, 2, 4], [2, 4, 2, 4], [1, 3, 1, 3], [1, 3, 1, 3]]))


def test_parameters_that_thaw_are_checked() -> None:
    model, run = of_numbers(Custom(), D)
    model.scale.requires_grad_(False)
    method = deltasam.PerInstanceSAM(model, rho=RHO)
    method.backward(lambda: run(model))
    model.scale.requires_grad_(True)
    with pytest.raises(deltasam.NotCoveredError, match="scale"):
        method.backward(lambda: run(model))


# Number of examples


def test_one_loss_without_a_call_of_the_model() -> None:
    model, _ = of_numbers(nn.Sequential(nn.Linear(D, C)), D)
    x = torch.randn(N, D, dtype=torch.float64)
    with pytest.raises(deltasam.NotCoveredError, match="the model itself was not called; return one loss per example"):
        take(model, lambda _: model[0](x).square().mean())
    taken = take(model, lambda _: model[0](x).square().mean(1), steps=2)
    assert taken.forwards == 2


def test_one_loss_of_calls_of_different_size() -> None:
    model, _ = of_numbers(nn.Linear(D, C), D)
    x = torch.randn(N, D, dtype=torch.float64)
    with pytest.raises(deltasam.NotCoveredError, match=r"was called with \[2, 4\] of them"):
        take(model, lambda call: call(x).mean() + call(x[:2]).mean())


def test_reentrant_checkpointing() -> None:
    """Parameters inside seem not to be used at all: neither two passes nor a loop would see them."""
    model, _ = of_numbers(nn.Linear(D, C), D)
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    before = everything(model)
    for unsupported in ("error", "loop", "skip"):
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            deltasam.PerInstanceSAM(model, unsupported=unsupported).backward(
                lambda: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True).square().mean(1)
            )
    assert same(everything(model), before)


def test_a_use_only_in_the_second_pass() -> None:
    model, run = of_numbers(nn.Sequential(nn.Linear(D, D), nn.Linear(D, C)), D)
    calls: list[int] = []
    other = torch.randn(D, D).double()

    def losses(call: Callable[..., Any]) -> Tensor:
        calls.append(0)
        return run(call) * (1 if len(calls) == 1 else 1 + (model[0].weight - other).mean())

    with pytest.raises(deltasam.NotCoveredError, match="the closure gives another result when it is run again"):
        take(model, losses)


def test_a_module_that_is_not_there_yet() -> None:
    model, x = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, C)), torch.randn(N, D)
    method = deltasam.PerInstanceSAM(model)
    with pytest.raises(deltasam.NotCoveredError, match=r"0\.weight, 0\.bias: is not there before the first forward"):
        method.backward(lambda: F.cross_entropy(model(x), torch.arange(N) % C, reduction="none"))
    model(x)
    method.backward(lambda: F.cross_entropy(model(x), torch.arange(N) % C, reduction="none"))


def test_a_sparse_bag() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, D, mode="sum", sparse=True), nn.Linear(D, C)).double()
    ids, y = torch.randint(0, 9, (N, 3)), torch.arange(N) % C
    with pytest.raises(deltasam.NotCoveredError, match="use sparse=False"):
        deltasam.PerInstanceSAM(model).backward(lambda: F.cross_entropy(model(ids), y, reduction="none"))
