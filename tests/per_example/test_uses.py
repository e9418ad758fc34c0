"""Every way in which a model may use a parameter, beside the equations."""

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
from per_instance import Losses, assert_exact, expected, take

N, T, D, C = 4, 6, 8, 3


class Tokens(nn.Module):
    """Token ids [n, T] to scores [n, C]; ``middle`` is what a test is about."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(9, D, padding_idx=0), nn.Linear(D, D)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, C)

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.middle(self.embed(ids))).mean(1))


def problem(model: nn.Module, n: int = N, tokens: int = T) -> tuple[nn.Module, Losses]:
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    ids, y = torch.randint(0, 9, (n, tokens)), torch.randint(0, C, (n,))
    return model, lambda call: F.cross_entropy(call(ids), y, reduction="none")


USES: dict[str, Callable[[], nn.Module]] = {}


def use(cls: type[nn.Module]) -> type[nn.Module]:
    USES[cls.__name__] = cls
    return cls


@use
class TwoLayersOneWeight(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(D, D)
        self.second.weight = self.linear.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.linear(x)))


@use
class OneLayerTwice(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.linear(x)))


@use
class OneBiasTwoWeights(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(D, D)
        self.second.bias = self.linear.bias

    def middle(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.linear(x)))


@use
class BiasOnceAlone(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * self.linear.bias


@use
class WeightOnceWithoutItsBias(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.linear(x)), self.linear.weight)


@use
class WeightAlsoTransposed(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) @ self.linear.weight


@use
class WeightTransposedByHand(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return x @ self.linear.weight.T + self.linear.bias


@use
class EmbeddingAsLayer(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(9, C)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.linear(self.embed(ids), self.embed.weight).tanh().mean(1))


@use
class Bilinear(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(D, D, D)

    def middle(self, x: Tensor) -> Tensor:
        return self.pair(x, self.linear(x))


@use
class Einsum(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("ntd,od->nto", x, self.linear.weight).tanh() + self.linear.bias


@use
class PReLU(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.PReLU(D)

    def middle(self, x: Tensor) -> Tensor:
        return self.slope(self.linear(x).transpose(1, 2)).transpose(1, 2)


@use
class WeightNorm(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(self.linear)


@use
class Orthogonal(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.orthogonal(self.linear, orthogonal_map="cayley")


@use
class LayerScale(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(D))

    def middle(self, x: Tensor) -> Tensor:
        return x + self.gamma * torch.tanh(self.linear(x))


@use
class Temperature(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.log_scale.exp().clamp(max=100)


@use
class ClassToken(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, D))

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([self.token.expand(len(x), -1, -1), x], 1)))


@use
class ClassTokenRepeated(ClassToken):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([self.token.repeat(len(x), 1, 1), x], 1)))


@use
class Positions(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(16, D))

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x + self.positions[: x.shape[1]]))


@use
class SoftPrompt(Tokens):
    """Virtual tokens from a small network that sees no example."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.network = nn.Embedding(2, D), nn.Linear(D, D)

    def middle(self, x: Tensor) -> Tensor:
        prompt = torch.tanh(self.network(self.prompt(torch.arange(2))))
        return torch.tanh(self.linear(torch.cat([prompt[None].expand(len(x), -1, -1), x], 1)))


@use
class Hyper(Tokens):
    """A weight made of others."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(D, 2)), nn.Parameter(torch.randn(2, D))

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.linear.weight + self.down @ self.up, self.linear.bias))


@use
class UnderNoGrad(Tokens):
    """The perturbed weights are seen, though no gradient flows."""

    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.norm(self.linear(x))
        return torch.tanh(self.linear(x)) * scale


@use
class DetachedUse(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + self.linear(x).detach() ** 2


@use
class DetachedParameter(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + F.linear(x, self.linear.weight.detach())


@use
class OutputNothingUses(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(D, D)

    def middle(self, x: Tensor) -> Tensor:
        self.pooler(x[:, 0])
        return torch.tanh(self.linear(x))


@use
class Normalised(Tokens):
    """BatchNorm that no longer looks at the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(D)
        self.batch_norm.running_mean.normal_()

    def middle(self, x: Tensor) -> Tensor:
        self.batch_norm.eval()
        return self.batch_norm(self.linear(x).transpose(1, 2)).transpose(1, 2).tanh()


@use
class InstanceNorm(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.instance_norm = nn.InstanceNorm1d(D, affine=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.instance_norm(self.linear(x).transpose(1, 2)).transpose(1, 2)


@use
class Dropped(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.linear(F.dropout(x, 0.3, self.training))), 0.3, self.training)


@use
class DroppedWeight(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, F.dropout(self.linear.weight, 0.3, self.training), self.linear.bias))


@use
class Checkpointed(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.own = [self.linear.weight]

    def middle(self, x: Tensor) -> Tensor:
        def run(h: Tensor) -> Tensor:
            return F.dropout(torch.tanh(self.linear(h)), 0.3)

        # The reference's weights are the model's only during its forward, so it must not run again later.
        if self.linear.weight is not self.own[0]:
            return run(x)
        return torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)


@use
class FlattenedInside(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(self.linear.bias, x.flatten(0, 1), self.linear.weight).view_as(x))


@use
class WeightInTheLoss(Tokens):
    """A penalty that belongs to every example."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * (1 + self.linear.weight.square().mean())


@use
class Gate(Tokens):
    """Of two parameters; neither has an axis for examples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(1))

    def middle(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, self.a, self.b) + torch.lerp(self.linear(x), x, torch.sigmoid(self.a))


@use
class Bag(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, D, mode="mean")

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(ids)))


@use
class CosineHead(Tokens):
    def forward(self, ids: Tensor) -> Tensor:
        return 5 * F.linear(F.normalize(self.embed(ids).mean(1)), F.normalize(self.head.weight))


@use
class Distances(Tokens):
    def forward(self, ids: Tensor) -> Tensor:
        return -torch.cdist(self.embed(ids).mean(1), self.head.weight)


@use
class Recurrent(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(len(x), D), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.linear(h) + x[:, t])
            states.append(h)
        return torch.stack(states, 1)


@use
class GatedCell(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, D)

    def middle(self, x: Tensor) -> Tensor:
        h = self.cell(x[:, 0], x[:, -1])
        return self.cell(x[:, -1], h)[:, None]


@use
class IndexedParameter(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, D))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table[ids]).mean(1))


@use
class WrittenInPlace(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x)).clone()
        y += self.norm.bias
        y *= self.norm.weight
        return y


@use
class Chunks(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        up, down = self.linear.weight.chunk(2)
        return torch.cat([F.linear(x, up), torch.tanh(F.linear(x, down))], -1)


@use
class Stacked(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        token = self.norm.weight.view(1, 1, -1).expand(len(x), x.shape[1], D)
        return torch.stack([token, torch.tanh(self.linear(x))], 2).mean(2)


@use
class ExpandAs(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * self.norm.weight.view(1, 1, -1).expand_as(x)


@use
class ChangedInPlace(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        scale = self.norm.weight * 2
        scale += self.linear.bias
        scale.div_(3)
        return torch.tanh(self.linear(x)) * scale


@use
class StackOfMatrices(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.matmul(x, self.linear.weight[None]) + self.linear.bias)


@pytest.mark.parametrize("name", USES)
def test_is_exact(name: str) -> None:
    assert_exact(*problem(USES[name]()))


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("tokens", [1, N, 2 * N])
def test_is_exact_when_the_length_looks_like_the_batch(name: str, tokens: int) -> None:
    if name == "InstanceNorm" and tokens == 1:
        pytest.skip("one value has no variance")
    assert_exact(*problem(USES[name](), tokens=tokens), ms=(1,))


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("steps", [1, 2])
def test_one_example(name: str, steps: int) -> None:
    model, run = problem(USES[name](), n=1)
    wanted = expected(model, run)
    taken = take(model, run, steps=steps)
    assert (taken.forwards == 2) == (steps == 2)  # the first is checked
    assert per_instance.error(taken.gradient, wanted) < 1e-10


CONVOLUTIONS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "conv3d": lambda: (nn.Conv3d(2, 4, 3, padding=1), (2, 4, 4, 4)),
    "transposed 1d": lambda: (nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1), (2, 5)),
    "transposed 2d, grouped": lambda: (nn.ConvTranspose2d(4, 4, 3, groups=2), (4, 5, 5)),
    "depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4, padding_mode="reflect", padding=1), (4, 5, 5)),
    "spectral norm": lambda: (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)).eval(), (3, 5, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]()
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(C)).double()
    x, y = torch.randn(N, *shape, dtype=torch.float64), torch.randint(0, C, (N,))
    model(x)
    assert_exact(model, lambda call: F.cross_entropy(call(x), y, reduction="none"))


@pytest.mark.parametrize("frozen", ["linear.weight", "linear.bias", "norm.weight", "norm.bias", "embed.weight", "head"])
@pytest.mark.parametrize("cls", [Tokens, TwoLayersOneWeight, OneBiasTwoWeights, EmbeddingAsLayer, WeightAlsoTransposed])
def test_frozen_parts(frozen: str, cls: type[nn.Module]) -> None:
    model, run = problem(cls())
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    assert_exact(model, run)
    assert all((p.grad is None) for p in model.parameters() if not p.requires_grad)


def test_only_a_bias_is_trained() -> None:
    model, run = problem(Tokens())
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    assert_exact(model, run)


def test_padding_has_no_gradient_but_is_looked_up() -> None:
    model, _ = problem(Tokens())
    ids, y = torch.tensor([[0, 0, 1], [2, 0, 0], [0, 0, 0], [1, 2, 3]]), torch.randint(0, C, (N,))
    assert_exact(model, lambda call: F.cross_entropy(call(ids), y, reduction="none"))
    assert (model.embed.weight.grad[0] == 0).all()


@pytest.mark.parametrize("width", [2, 4, 64])
def test_every_form_a_gradient_is_kept_in(width: int) -> None:
    """Narrow layers form it, wide ones do not: both are the same."""
    model = nn.Sequential(nn.Embedding(9, width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, C))
    model, _ = problem(model)
    ids, y = torch.randint(0, 9, (N, 12)), torch.randint(0, C, (N, 12))
    assert_exact(model, lambda call: F.cross_entropy(call(ids).transpose(1, 2), y, reduction="none").mean(1))


class TiedLanguageModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(40, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.linear(self.embed(ids))))


@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("kept", [1, 3, 12])
def test_a_tied_head_where_most_targets_are_ignored(width: int, kept: int) -> None:
    """Rows without a gradient are left out of the products, a different number for every example."""
    model = TiedLanguageModel(width).double()
    ids = torch.randint(0, 40, (N, 12))
    targets = ids.roll(-1, 1)
    for i in range(N):
        targets[i, torch.randperm(12)[max(kept - i, 1) :]] = -100

    def run(call: Callable[..., Any]) -> Tensor:
        losses = F.cross_entropy(call(ids).transpose(1, 2), targets, ignore_index=-100, reduction="none")
        return losses.sum(1) / (targets != -100).sum(1)

    assert_exact(model, run)


def test_sparse_gradients_of_an_embedding() -> None:
    model, run = problem(Tokens())
    wanted = expected(model, run)
    model.embed.sparse = True
    taken = take(model, run)
    assert taken.gradient["embed.weight"].is_sparse
    dense = {n: g.to_dense() for n, g in taken.gradient.items()}
    assert per_instance.error(dense, wanted) < 1e-10


@pytest.mark.parametrize("run_before", [False, True])
def test_a_compiled_model(run_before: bool) -> None:
    """Also one that was compiled before the first step, and by the third."""
    model, run = problem(Tokens())
    wanted = expected(model, run)
    compiled = torch.compile(model, backend="eager")
    if run_before:
        run(compiled).mean().backward()
    taken = take(model, lambda _: run(compiled), steps=3)
    assert taken.warnings == []
    assert per_instance.error(taken.gradient, wanted) < 1e-10


def test_inputs_with_a_gradient_of_their_own() -> None:
    model, _ = problem(Tokens())
    x = torch.randn(N, T, D, dtype=torch.float64, requires_grad=True)

    def run(call: Callable[..., Any]) -> Tensor:
        return call(x).square().mean((1, 2))

    assert_exact(model.linear, run)


@pytest.mark.parametrize("make", [torch.randn, torch.zeros, torch.ones])
def test_inputs_made_in_the_closure(make: Any) -> None:
    """They belong to the examples, though they are computed from nothing."""
    model, _ = problem(Tokens())
    y = torch.randint(0, C, (N,))

    def run(call: Callable[..., Any]) -> Tensor:
        scores = call(make(N, D, dtype=torch.float64))
        return F.cross_entropy(scores[:, :C], y, reduction="none")

    assert_exact(model.linear, run)


def test_the_library_of_m_is_between_one_and_all() -> None:
    model, run = problem(Tokens())
    one, two, all_of_them = (take(model, run, m=m) for m in (1, 2, N))
    wanted = {m: expected(model, run, m) for m in (1, 2, N)}
    for m, taken in {1: one, 2: two, N: all_of_them}.items():
        assert per_instance.error(taken.gradient, wanted[m]) < 1e-12
        assert len(taken.step.metrics["group_grad_norms"]) == N // m
    torch.manual_seed(per_instance.SEED)
    losses, w = per_instance.reference.losses_function(model, run)
    assert per_instance.error(all_of_them.gradient, per_instance.reference.sam(losses, w, rho=per_instance.RHO)) < 1e-12


def test_coverage_tells_the_rules() -> None:
    model, run = problem(SoftPrompt())
    model.unused = nn.Parameter(torch.ones(1))
    method = per_instance.deltasam.PerInstanceSAM(model, rho=per_instance.RHO)
    with pytest.raises(RuntimeError, match="call backward"):
        method.coverage()
    method.backward(lambda: run(model))
    coverage = method.coverage()
    rules = {row.parameter: row.rule for row in coverage}
    assert coverage.exact
    assert rules.keys() == {n for n, _ in model.named_parameters()}
    assert rules["embed.weight"] == "lookup"
    assert rules["linear.weight"] == rules["head.bias"] == "product"
    assert rules["norm.weight"] == rules["network.weight"] == "copies"
    assert rules["unused"] == "unused"
    header, *lines = str(coverage).splitlines()
    assert header.split() == ["parameter", "rule", "exact", "why", "not"]
    assert [line.split()[0] for line in lines] == list(rules)
    assert all(line.split()[2] == "yes" for line in lines)


def test_coverage_of_a_tied_parameter() -> None:
    model, _ = problem(TiedLanguageModel(4))
    method = per_instance.deltasam.PerInstanceSAM(model)
    method.backward(lambda: model(torch.randint(0, 40, (N, T))).square().mean((1, 2)))
    assert next(iter(method.coverage())).rule == "lookup + product"


def test_coverage_of_a_closure_leaves_nothing_behind() -> None:
    model, run = problem(USES["LayerScale"]())
    method = deltasam.PerInstanceSAM(model)
    state = torch.get_rng_state()
    coverage = method.coverage(lambda: run(model))
    assert coverage.exact
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_coverage_of_a_closure_tells_what_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    coverage = deltasam.PerInstanceSAM(model).coverage(lambda: model(torch.randn(4, 3)).square().mean(1))
    assert not coverage.exact
    assert all("1: BatchNorm1d" in row.why for row in coverage)


def test_norms_without_a_check_are_the_same() -> None:
    model, run = problem(USES["LayerScale"]())
    checked = deltasam.per_example_grad_norms(model, lambda: run(model))
    assert torch.equal(deltasam.per_example_grad_norms(model, lambda: run(model), check=False), checked)
