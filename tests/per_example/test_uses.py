"""Every way in which a model may use a parameter, beside the equations."""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import deltasam
import per_instance
from deltasam import reference
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


class Token(Tokens):
    """One vector that is put among the tokens of every example."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(D))


@use
class TokenExpanded(Token):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([self.token.expand(len(x), 1, -1), x], 1)))


@use
class TokenRepeated(Token):
    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([self.token.repeat(len(x), 1, 1), x], 1)))


@use
class TokenStacked(Token):
    def middle(self, x: Tensor) -> Tensor:
        rows = torch.cat([torch.stack([self.token] * len(x))[1:], self.token[None]])
        return torch.tanh(self.linear(torch.cat([rows[:, None], x], 1)))


@use
class TokenForMaskedPlaces(Token):
    """SpecAugment: as many places as it happens."""

    def middle(self, x: Tensor) -> Tensor:
        h, mask = torch.tanh(self.linear(x)), torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[0, 0] = mask[-1] = True
        h = h.clone()
        h[mask] = self.token.to(h.dtype)
        return h * h


@use
class NothingInIt(Tokens):
    """A layer that gives out nothing, one that takes nothing in, and a parameter without a number: pruned, say."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.narrow, self.wide = nn.Linear(D, 0), nn.Linear(0, D)
        self.tokens = nn.Parameter(torch.zeros(1, 0, D))

    def middle(self, x: Tensor) -> Tensor:
        h = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        return self.linear(h + self.wide(self.narrow(h)))


@use
class TokenWritten(Token):
    def middle(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x)).clone()
        h[:, 0] = self.token
        h[..., -1, 2:5] = (2 * self.token)[2:5]
        h[torch.arange(len(x)), torch.zeros(len(x)).long(), :2] += self.token[:2]
        return h * h


@use
class ScoresWritten(Tokens):
    """Values with axes of their own, in a part of every example."""

    def middle(self, x: Tensor) -> Tensor:
        h = F.pad(torch.tanh(self.linear(x)), (0, 0, 2, 0))
        h[:, :2] = self.head.weight[:2]
        h[:, None, 0] = self.norm.bias[None, None, None]
        return h * h


@use
class WrittenIntoZeros(Token):
    """First the token, which no example has met, then the examples."""

    def middle(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), x.shape[1] + 1, D, dtype=x.dtype)
        h[:, 0] = self.token
        h[:, 0, 0] = 1
        h[:, 1:] = x
        return torch.tanh(self.linear(h))


@use
class PartOfZeros(Token):
    """A table of zeros, of which a part is written through a view, and then as a part: the graph has both."""

    def middle(self, x: Tensor) -> Tensor:
        table = torch.zeros(2, D, dtype=x.dtype)
        table[:, :1] += self.token[:2, None]
        ids = torch.arange(2).expand(len(x), -1)
        return torch.tanh(self.linear(torch.cat([F.embedding(ids, table), x], 1)))


@use
class ActivationInPlace(Tokens):
    """A linear layer's output of three axes is a view of its rows, and is written into."""

    def middle(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        h[:, 0] = 0.5
        return F.leaky_relu(h, 0.3, inplace=True)


@use
class IdsOfOneRow(Token):
    """Kept in an attribute, for all examples: no buffer, and no input."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.ids = nn.Embedding(3, D), torch.arange(3)[None]

    def middle(self, x: Tensor) -> Tensor:
        prompt = torch.tanh(self.linear(self.prompt(self.ids))).repeat(len(x), 1, 1)
        return torch.cat([prompt.to(x), x], 1)


@use
class MadeInPlace(Tokens):
    """A rotation that begins as zeros and ones, as adapters make it."""

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.Parameter(torch.randn(2, 6))

    def middle(self, x: Tensor) -> Tensor:
        skew, (rows, columns) = torch.zeros(2, 4, 4, dtype=x.dtype), torch.triu_indices(4, 4, 1)
        skew[:, rows, columns] = self.angles
        skew = skew - skew.transpose(1, 2)
        rotation = torch.eye(4, dtype=x.dtype).repeat(2, 1, 1)
        rotation.add_(skew, alpha=2.0)
        rotation *= 0.5
        copied = torch.zeros(2, 4, 4, dtype=x.dtype)
        copied.copy_(rotation)
        return torch.einsum("...rk,rkc->...rc", x.unflatten(-1, (2, 4)), rotation + copied.div_(2)).flatten(-2)


@use
class DoubledOften(Tokens):
    """What is used twice is computed once: else this would take 4^18 steps."""

    def middle(self, x: Tensor) -> Tensor:
        scale = self.norm.weight
        for _ in range(18):
            scale = sum((0.25 * (scale + scale)).chunk(2)).repeat(2)
        return torch.tanh(self.linear(x)) * scale


@use
class ParameterMadeOfFrozen(Tokens):
    """A library wraps a frozen weight in a parameter of its own, in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.randn(D, D), requires_grad=False)

    def middle(self, x: Tensor) -> Tensor:
        return x @ (nn.Parameter(self.frozen.T) * self.norm.weight)


@use
class RowForEachPlace(Tokens):
    """A parameter with a row for each place in the batch: of an example's copy only one row counts."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(N, 1, D))

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) + self.places[: len(x)])


@use
class PositionIds(Tokens):
    """The same ids for every example, made up in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(16, D))

    def middle(self, x: Tensor) -> Tensor:
        ids = torch.arange(x.shape[1]).repeat(len(x), 1)
        return torch.tanh(self.linear((x + self.positions[ids]) * self.positions[ids - len(self.positions)]))


@use
class RecurrentFromZeros(Tokens):
    def middle(self, x: Tensor) -> Tensor:
        h, states = torch.zeros(len(x), D, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.linear(h) + x[:, t])
            states.append(h)
        return torch.stack(states, 1)


@use
class LongShortTermMemoryByHand(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_h = nn.Linear(D, 4 * D), nn.Linear(D, 4 * D)

    def middle(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(2, len(x), D, dtype=x.dtype)
        for t in range(x.shape[1]):
            enter, forget, leave, value = (self.of_x(x[:, t]) + self.of_h(h)).chunk(4, -1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(value)
            h = torch.sigmoid(leave) * torch.tanh(c)
        return h[:, None]


@use
class GatedCellFromZeros(GatedCell):
    def middle(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), D, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return h[:, None]


@use
class LongShortTermMemoryCell(GatedCell):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(D, D)

    def middle(self, x: Tensor) -> Tensor:
        h, c = self.cell(x[:, 0])
        for t in range(1, x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return h[:, None]


@use
class LongShortTermMemory(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(D, D, num_layers=2, bidirectional=True, batch_first=True)
        self.narrow = nn.Linear(2 * D, D)

    def middle(self, x: Tensor) -> Tensor:
        states, (h, c) = self.layers(x)
        return F.dropout(self.narrow(states), 0.3) * h[0][:, None] + c[1][:, None]


@use
class GatedUnits(Tokens):
    """From a learned state, time in front."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.start = nn.GRU(D, D), nn.Parameter(torch.randn(1, 1, D))

    def middle(self, x: Tensor) -> Tensor:
        start = self.start.expand(-1, len(x), -1).contiguous()
        return F.dropout(self.layers(x.transpose(0, 1), start)[0], 0.3).transpose(0, 1)


@use
class RecurrentLayer(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.RNN(D, D, bias=False, nonlinearity="relu", batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.layers(x, x[None, :, 0].contiguous())[0]


@use
class MultiheadAttention(Tokens):
    """Padding, a mask for each head, and dropout of the weights and of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, dropout=0.3, batch_first=True)
        self.dropout = nn.Dropout(0.3)

    def middle(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        padding, pairs = torch.zeros(n, t, dtype=torch.bool), torch.arange(t).to(x.dtype).expand(2 * n, t, t)
        padding[0, -1] = t > 1
        y, weights = self.attention(x, x, x, key_padding_mask=padding, attn_mask=pairs)
        return self.dropout(y) * (1 + weights.sum(2)[..., None])


@use
class CrossAttention(Tokens):
    """Learned queries, and inputs of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, D))
        self.packed = nn.MultiheadAttention(D, 2, batch_first=True)
        self.apart = nn.MultiheadAttention(D, 2, kdim=4, vdim=6, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        y, _ = self.packed(self.queries.repeat(len(x), 1, 1), x, x, need_weights=False)
        return self.apart(y, x[..., :4], x[..., :6])[0]


@use
class TransformerLayers(Tokens):
    """With a causal mask, as torch makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.2, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.layer(x, mask, is_causal=True)


@use
class InfiniteInside(Tokens):
    """Where no gradient comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(D, D, 1)

    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            looked_at = self.convolution(x.mT / 0).isfinite()
        return torch.where(looked_at, x.mT, self.convolution(x.mT)).mT


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


@pytest.mark.parametrize("sign", [1, -1])
def test_a_penalty_in_the_loss_of_all_examples(sign: int) -> None:
    """Every example has its share: the loss is the mean of ``l_i + R``."""
    model, run = problem(Tokens())

    def penalty(weights: Iterable[Tensor]) -> Tensor:
        return 0.05 * sum(w.square().sum() for w in weights)

    losses, w = reference.losses_function(model, run)
    wanted = reference.per_instance_sam(lambda w: losses(w) + sign * penalty(w.values()), w, rho=per_instance.RHO, m=1)
    taken = take(model, lambda call: run(call).mean() + sign * penalty(model.parameters()), steps=2)
    assert taken.forwards == 2
    assert per_instance.error(taken.gradient, wanted) < 1e-10


@dataclasses.dataclass
class Given:
    """What a model may be given: tensors in a dataclass, beside others that are none."""

    ids: Tensor
    name: str = "a batch"


def nested(**batch: Tensor) -> dict[str, Any]:
    return {"deep": [Given(**batch)]}


@pytest.mark.parametrize("pack", [Given, OrderedDict, UserDict, nested])
def test_a_batch_in_anything(pack: Callable[..., Any]) -> None:
    """With one loss of all: how many examples there are is seen in the batch, which is made in the closure."""

    class Unpacks(Tokens):
        def forward(self, batch: Any) -> Tensor:
            batch = batch["deep"][0] if isinstance(batch, dict) and "deep" in batch else batch
            return super().forward(batch.ids if isinstance(batch, Given) else batch["ids"])

    model, _ = problem(Unpacks())
    ids, y = torch.randint(0, 9, (N, T)), torch.randint(0, C, (N,))
    wanted = expected(model, lambda call: F.cross_entropy(call(pack(ids=ids)), y, reduction="none"))
    taken = take(model, lambda call: F.cross_entropy(call(pack(ids=ids)), y), steps=2)
    assert taken.forwards == 2
    assert per_instance.error(taken.gradient, wanted) < 1e-10


def test_the_library_of_m_is_between_one_and_all() -> None:
    model, run = problem(Tokens())
    one, two, all_of_them = (take(model, run, m=m) for m in (1, 2, N))
    wanted = {m: expected(model, run, m) for m in (1, 2, N)}
    for m, taken in {1: one, 2: two, N: all_of_them}.items():
        assert per_instance.error(taken.gradient, wanted[m]) < 1e-12
        assert len(taken.step.metrics["group_grad_norms"]) == N // m
    torch.manual_seed(per_instance.SEED)
    losses, w = reference.losses_function(model, run)
    assert per_instance.error(all_of_them.gradient, reference.sam(losses, w, rho=per_instance.RHO)) < 1e-12


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
    assert rules["norm.weight"] == "affine"
    assert rules["network.weight"] == "copies"
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
