"""Pieces of models as source text: what a random program is made of.

A *block* maps hidden states [n, t, d] to hidden states [n, t, d]. It writes lines of ``__init__`` and of ``forward`` into
a ``Source`` and returns the name of its result. *Matrices* and *vectors* are expressions made of parameters alone, as
people make them: low-rank products, standardised or masked weights, custom functions, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

CLASSES: dict[str, str] = {
    "Sign": """
class Sign(torch.autograd.Function):  # straight through
    @staticmethod
    def forward(ctx, w):
        return w.sign() * 0.5

    @staticmethod
    def backward(ctx, g):
        return g
""",
    "Product": """
class Product(torch.autograd.Function):  # a product of two weights with a backward by hand
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b, g * a
""",
    "Reverse": """
class Reverse(torch.autograd.Function):  # gradient reversal
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g
""",
    "Linear": """
class Linear(torch.autograd.Function):  # a linear layer by hand
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2)
""",
    "Round": """
class Round(torch.autograd.Function):  # activations on a grid, straight through
    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g
""",
    "Normed": """
class Normed(torch.autograd.Function):  # the backward looks at the whole batch
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g / (g.norm() + 1e-3)
""",
    "Centred": """
class Centred(torch.autograd.Function):  # the backward mixes the examples
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g - 0.5 * g.mean(0, keepdim=True)
""",
    "Clipped": """
class Clipped(torch.autograd.Function):  # the backward clips by value: not linear in the gradient
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.01, 0.01)
""",
    "Again": """
class Again(torch.autograd.Function):  # a checkpoint by hand: runs its part again and calls backward itself
    @staticmethod
    def forward(ctx, part, x):
        ctx.part = part
        ctx.save_for_backward(x)
        with torch.no_grad():
            return part(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.part(x), g)
        return None, x.grad
""",
}


@dataclass
class Source:
    """The text of a model that is being written.

    Attributes:
        n: Number of examples.
        t: Tokens of an example.
        d: Width.
        plain: Matrices and vectors are parameters as they are.
    """

    n: int
    t: int
    d: int
    plain: bool = False
    init: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    shapes: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    number: int = 0

    def name(self, prefix: str) -> str:
        """A new name."""
        self.number += 1
        return f"{prefix}{self.number}"

    def line(self, text: str) -> None:
        """Lines of ``forward``."""
        self.lines += text.split("\n")

    def let(self, expression: str, prefix: str = "h") -> str:
        """A new local variable."""
        name = self.name(prefix)
        self.line(f"{name} = {expression}")
        return name

    def param(self, r: Random, *shape: int, tie: float = 0.15) -> str:
        """A parameter; sometimes one that is there already."""
        known = self.shapes.setdefault(shape, [])
        if known and r.random() < tie:
            return r.choice(known)
        name = self.name("p")
        size = ", ".join(map(str, shape))
        self.init.append(
            f"self.{name} = nn.Parameter(0.6 * torch.randn({size}))"
            if shape
            else f"self.{name} = nn.Parameter(torch.tensor({r.uniform(0.5, 1.5):.3f}))"
        )
        known.append(f"self.{name}")
        return known[-1]

    def buffer(self, expression: str) -> str:
        """A buffer."""
        name = self.name("buffer")
        self.init.append(f'self.register_buffer("{name}", {expression})')
        return f"self.{name}"

    def module(self, expression: str) -> str:
        """A submodule."""
        name = self.name("module")
        self.init.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def cls(self, name: str) -> str:
        """A class of ``CLASSES``."""
        if name not in self.classes:
            self.classes.append(name)
        return name

    def matrix(self, r: Random, o: int | None = None, i: int | None = None) -> str:
        """An expression of parameters alone [o, i]; d by d unless given."""
        o, i = self.d if o is None else o, self.d if i is None else i
        if self.plain or r.random() < 0.4:
            return self.param(r, o, i)
        fits = [f for f in MATRICES if f is not _kron or o % 2 == i % 2 == 0]
        return r.choice(fits)(self, r, o, i)

    def vector(self, r: Random, d: int | None = None) -> str:
        """An expression of parameters alone [d]."""
        d = self.d if d is None else d
        if self.plain or r.random() < 0.5:
            return self.param(r, d)
        return r.choice(VECTORS)(self, r, d)


Block = Callable[[Source, Random, str], str]
BLOCKS: dict[str, dict[str, Block]] = {"ordinary": {}, "hostile": {}}
MATRICES: list[Callable[[Source, Random, int, int], str]] = []
VECTORS: list[Callable[[Source, Random, int], str]] = []


def ordinary(f: Block) -> Block:
    """Register a block that keeps examples apart."""
    BLOCKS["ordinary"][f.__name__] = f
    return f


def hostile(f: Block) -> Block:
    """Register a block that does not, or that does what an engine cannot see."""
    BLOCKS["hostile"][f.__name__] = f
    return f


def matrix(f: Callable[[Source, Random, int, int], str]) -> Callable[[Source, Random, int, int], str]:
    """Register a way to make a matrix."""
    MATRICES.append(f)
    return f


def vector(f: Callable[[Source, Random, int], str]) -> Callable[[Source, Random, int], str]:
    """Register a way to make a vector."""
    VECTORS.append(f)
    return f


# One choice of a list after the other: a line each would make a page of every block.
# fmt: off
# ruff: noqa: E501

# Matrices of parameters [o, i].


@matrix
def _transposed(g: Source, r: Random, o: int, i: int) -> str:
    return g.param(r, i, o) + r.choice([".T", ".t()", ".mT", ".transpose(0, 1)", ".permute(1, 0)", ".T.contiguous()"])


@matrix
def _row_scaled(g: Source, r: Random, o: int, i: int) -> str:
    return r.choice([f"({g.param(r, o, i)} * {g.param(r, o)}[:, None])", f"({g.param(r, o, i)} * {g.param(r, i)})"])


@matrix
def _pointwise_matrix(g: Source, r: Random, o: int, i: int) -> str:
    p = g.param(r, o, i)
    return r.choice([f"torch.tanh({p})", f"{p} ** 2", f"({p} - 0.1)", f"2 * {p}", f"F.relu({p})", f"{p}.clamp(-0.5, 0.5)",
                     f"torch.sin({p})", f"{p}.clone()", f"(-{p})", f"({p} / 3)", f"{p}.softmax(-1)", f"{p}.clone().mul_(0.5)",
                     f"F.softplus({p})", f"torch.relu_({p} * 1.0)", f"({p} + {p}.detach()) / 2", f"F.normalize({p}, dim=-1)"])


@matrix
def _low_rank(g: Source, r: Random, o: int, i: int) -> str:
    base = g.buffer(f"0.5 * torch.randn({o}, {i})") if r.random() < 0.5 else g.param(r, o, i)
    return f"({base} + {g.param(r, o, 2)} @ {g.param(r, 2, i)})"


@matrix
def _hadamard(g: Source, r: Random, o: int, i: int) -> str:
    left, right = (f"({g.param(r, o, 2)} @ {g.param(r, 2, i)})" for _ in range(2))
    return f"({left} * {right})"


@matrix
def _standardised(g: Source, r: Random, o: int, i: int) -> str:
    p = g.param(r, o, i)
    return f"(({p} - {p}.mean(1, keepdim=True)) / ({p}.var(1, keepdim=True, unbiased=False) + 0.1).sqrt())"


@matrix
def _weight_norm(g: Source, r: Random, o: int, i: int) -> str:
    p = g.param(r, o, i)
    length = r.choice([f"{p}.norm(dim=1, keepdim=True)", f"{p}.detach().norm()", f"{p}.norm()"])
    return f"({g.param(r, o)}[:, None] * {p} / {length})"


@matrix
def _straight_through(g: Source, r: Random, o: int, i: int) -> str:
    p = g.param(r, o, i)
    return r.choice([f"{g.cls('Sign')}.apply({p})", f"({p} + ((8 * {p}).round() / 8 - {p}).detach())", f"{g.cls('Sign')}.apply({p}.T.contiguous()).T" if o == i else f"{g.cls('Sign')}.apply(2 * {p})"])


@matrix
def _by_product_function(g: Source, r: Random, o: int, i: int) -> str:
    return f"{g.cls('Product')}.apply({g.param(r, o, i)}, {g.param(r, o, i)})"


@matrix
def _halves(g: Source, r: Random, o: int, i: int) -> str:
    if o > 1 and r.random() < 0.5:
        return f"torch.cat([{g.param(r, 1, i)}, {g.param(r, o - 1, i)}])"
    return f"torch.cat([{g.param(r, o, 1)}, {g.param(r, o, i - 1)}], 1)" if i > 1 else g.param(r, o, i)


@matrix
def _stacked(g: Source, r: Random, o: int, i: int) -> str:
    return f"torch.stack([{', '.join(g.param(r, i, tie=0.3) for _ in range(o))}])"


@matrix
def _kron(g: Source, r: Random, o: int, i: int) -> str:
    return f"torch.kron({g.param(r, 2, 2)}, {g.param(r, o // 2, i // 2)})"


@matrix
def _sliced(g: Source, r: Random, o: int, i: int) -> str:
    return r.choice([f"{g.param(r, o + 2, i)}[1:-1]", f"{g.param(r, o, i + 1)}[:, :-1]", f"{g.param(r, 2, o, i)}[1]",
                     f"{g.param(r, 2, o, i)}.mean(0)", f"{g.param(r, o + 1, i)}[{g.buffer(f'torch.randint({o + 1}, ({o},))')}]",
                     f"{g.param(r, o * i)}.view({o}, {i})", f"{g.param(r, 2, o, i)}.unbind(0)[0]",
                     f"{g.param(r, 2 * o, i)}.chunk(2)[1]", f"torch.narrow({g.param(r, o, i + 2)}, 1, 1, {i})"])


@matrix
def _cayley(g: Source, r: Random, o: int, i: int) -> str:
    if o != i:
        return g.param(r, o, i)
    p = g.param(r, o, o)
    eye = f"torch.eye({o}, dtype={p}.dtype)"
    skew = g.let(f"{p} - {p}.T", "skew")
    return r.choice([f"torch.linalg.solve({eye} + {skew}, {eye} - {skew})", f"torch.matrix_exp({skew})",
                     f"(({eye} - {skew}) @ torch.linalg.inv({eye} + {skew}))"])


@matrix
def _dropped(g: Source, r: Random, o: int, i: int) -> str:
    p = g.param(r, o, i)
    return r.choice([f"F.dropout({p}, 0.3, self.training)", f"F.dropout(2 * {p}, 0.3, self.training, inplace=True)",
                     f"F.dropout(2 * {p}, 0.3, self.training)", f"F.alpha_dropout(2 * {p}, 0.3, self.training)",
                     f"({p} * (torch.rand_like({p}) > 0.2))", f"({p} + 0.1 * torch.randn({o}, {i}))"])


@matrix
def _composed(g: Source, r: Random, o: int, i: int) -> str:
    return r.choice([f"torch.outer({g.param(r, o)}, {g.param(r, i)})", f"torch.einsum('a,b->ab', {g.param(r, o)}, {g.param(r, i)})",
                     f"({g.param(r, o)}[:, None] + {g.param(r, i)})", f"torch.diag({g.param(r, o)})" if o == i else g.param(r, o, i),
                     f"torch.tril({g.param(r, o, i)})", f"torch.lerp({g.param(r, o, i)}, {g.param(r, o, i)}, 0.3)",
                     f"{g.param(r, i)}.expand({o}, {i})", f"{g.param(r, 1, i)}.repeat({o}, 1)",
                     f"sum(w * p for w, p in zip({g.param(r, 2)}.softmax(0), {g.param(r, 2, o, i)}))"])


@matrix
def _masked_matrix(g: Source, r: Random, o: int, i: int) -> str:
    mask = g.buffer(f"torch.rand({o}, {i}) > 0.3")
    p = g.param(r, o, i)
    return r.choice([f"({p} * {mask})", f"{p}.masked_fill({mask}, 0.0)", f"torch.where({mask}, {p}, {g.param(r, o, i)})"])


@matrix
def _scattered(g: Source, r: Random, o: int, i: int) -> str:
    k = max(1, o * i // 2)
    places = g.buffer(f"torch.randperm({o * i})[:{k}]")
    p = g.param(r, k)
    name = g.name("w")
    how = r.choice([f"{name}[{places}] = {p}", f"{name} = {name}.index_put(({places},), {p})", f"{name} = {name}.scatter(0, {places}, {p})",
                    f"{name}.index_add_(0, {places}, {p})", f"{name}.scatter_(0, {places}, {p})"])
    g.line(f"{name} = torch.zeros({o * i})\n{how}")
    return f"{name}.view({o}, {i})"


@matrix
def _spectrum(g: Source, r: Random, o: int, i: int) -> str:
    return f"torch.fft.ifft2({g.param(r, o, i)}).real"


@matrix
def _written(g: Source, r: Random, o: int, i: int) -> str:
    name = g.name("w")
    p = g.param(r, o, i)
    g.line(f"{name} = {r.choice([f'{p} * 1.0', f'{p}.clone()', f'torch.zeros({o}, {i})'])}")
    g.line(r.choice([f"{name}[0] = {g.param(r, i)}", f"{name}[:, :1] += {g.param(r, o, 1)}", f"{name}.add_({g.param(r, o, i)})",
                     f"{name}.mul_({g.param(r, i)})", f"torch.add({name}, {p}, out={name}.detach())" if False else f"{name}.copy_({g.param(r, o, i)})"]))
    return name


@matrix
def _twice_without_gradient(g: Source, r: Random, o: int, i: int) -> str:
    p = g.param(r, o, i)
    name = g.name("scale")
    g.line(f"with torch.no_grad():\n    {name} = {r.choice([f'{p}.abs().mean()', f'{p}.norm(dim=1, keepdim=True)', f'{p}.abs().amax()'])} + 0.1")
    return f"({p} / {name})"


# Vectors of parameters [d].


@vector
def _pointwise_vector(g: Source, r: Random, d: int) -> str:
    p = g.param(r, d)
    return r.choice([f"{p}.abs()", f"torch.exp(0.1 * {p})", f"{p}.softmax(0)", f"(1 + {p})", f"{p}.cumsum(0)", f"{p}.flip(0)",
                     f"{p}.detach() + 0.5 * {p}", f"torch.sigmoid({p})", f"{p}.roll(1)", f"{g.cls('Sign')}.apply({p})",
                     f"({p} - {p}.mean())", f"F.layer_norm({p}, ({d},))", f"({p} / {p}.norm())"])


@vector
def _from_matrix(g: Source, r: Random, d: int) -> str:
    p = g.param(r, d, 3)
    return r.choice([f"{p}.sum(1)", f"{p}[:, 0]", f"{p}.norm(dim=1)", f"({p} @ {g.param(r, 3)})", f"{p}.amax(1)",
                     f"torch.mv({p}, {g.param(r, 3)})", f"{p}.mean(1)", f"{p}.logsumexp(1)"])


@vector
def _from_scalar(g: Source, r: Random, d: int) -> str:
    s = g.param(r)
    return r.choice([f"{s}.expand({d})", f"{s} * torch.ones({d})", f"torch.stack([{s}] * {d})", f"{s}.repeat({d})",
                     f"torch.full(({d},), 0.5) * {s}"])


@vector
def _joined(g: Source, r: Random, d: int) -> str:
    return r.choice([f"torch.cat([{g.param(r, 1)}, {g.param(r, d - 1)}])" if d > 1 else g.param(r, d), f"{g.param(r, d + 2)}[1:-1]",
                     f"F.pad({g.param(r, d - 1)}, (0, 1))" if d > 1 else g.param(r, d), f"F.dropout(2 * {g.param(r, d)}, 0.2, self.training)"])


# Ordinary blocks: examples are kept apart.


@ordinary
def linear(g: Source, r: Random, h: str) -> str:
    w = g.matrix(r)
    bias = g.vector(r) if r.random() < 0.6 else "None"
    return g.let(f"F.linear({h}, {w}, {bias})")


@ordinary
def products(g: Source, r: Random, h: str) -> str:
    w, v, d = g.matrix(r), g.vector(r), g.d
    n = f"{h}.shape[0]"
    rows = f"{h}.reshape(-1, {d})"
    return g.let(r.choice([
        f"{h} @ {w}", f"torch.matmul({h}, {w}) + {v}", f"torch.einsum('ntd,de->nte', {h}, {w})", f"torch.einsum('...d,ed->...e', {h}, {w})",
        f"{rows}.mm({w}).view_as({h})", f"torch.addmm({v}, {rows}, {w}).view({n}, -1, {d})",
        f"torch.bmm({h}, {w}.unsqueeze(0).expand({n}, -1, -1))", f"torch.baddbmm({h}, {h}, {w}.expand({n}, {d}, {d}))",
        f"torch.tensordot({h}, {w}, dims=([2], [0]))", f"({h}.unsqueeze(-1) * {w}).sum(-2)", f"({w} @ {h}.mT).mT",
        f"torch.einsum('de,nte->ntd', {w}, {h})", f"({w} @ {h}.unsqueeze(-1)).squeeze(-1) + {v}", f"torch.inner({h}, {w})",
        f"torch.addcmul({h}, {v}, {h} @ {w})", f"torch.func.vmap(lambda z: z @ {w})({h})", f"torch.stack([row @ {w} for row in {h}])",
        f"torch.cat([row @ {w} for row in {h}]).view_as({h})", f"torch.einsum('ntd,de,ef->ntf', {h}, {w}, {g.matrix(r)})",
        f"torch.chain_matmul({rows}, {w}, {g.matrix(r)}).view_as({h})", f"torch.mm({w}, {rows}.T).T.view_as({h})",
        f"torch.linalg.multi_dot([{rows}, {w}, {g.matrix(r)}]).view_as({h})",
        f"torch.baddbmm({v}, {h}, {w}.repeat({n}, 1, 1))", f"torch.mul({h}.unsqueeze(2), {w}).sum(-1)",
    ]))


@ordinary
def token_mixing(g: Source, r: Random, h: str) -> str:
    w = g.matrix(r, g.t, g.t)
    return g.let(r.choice([f"{w} @ {h}", f"torch.einsum('st,ntd->nsd', {w}, {h})", f"F.linear({h}.transpose(1, 2), {w}).transpose(1, 2)",
                           f"torch.matmul({w}, {h}) + {g.vector(r)}", f"torch.tril({w}) @ {h}", f"{w}.softmax(-1) @ {h}"]))


@ordinary
def layer(g: Source, r: Random, h: str) -> str:
    d = g.d
    one = g.module(r.choice([f"nn.Linear({d}, {d})", f"nn.Linear({d}, {d}, bias=False)", f"nn.LayerNorm({d})", f"nn.RMSNorm({d})", f"nn.PReLU({d})" if g.t == d else "nn.PReLU()",
                             f"nn.utils.parametrizations.weight_norm(nn.Linear({d}, {d}))", f"nn.utils.parametrizations.orthogonal(nn.Linear({d}, {d}))",
                             f"nn.utils.parametrizations.spectral_norm(nn.Linear({d}, {d}))", f"nn.Sequential(nn.Linear({d}, 2), nn.Tanh(), nn.Linear(2, {d}))",
                             f"nn.TransformerEncoderLayer({d}, 2, 8, 0.0, batch_first=True)", f"nn.TransformerEncoderLayer({d}, 2, 8, 0.1, batch_first=True, norm_first=True)"]))
    return g.let(f"{one}({h})") if r.random() < 0.7 else g.let(f"{one}(torch.tanh({one}({h})))")


@ordinary
def activation(g: Source, r: Random, h: str) -> str:
    return g.let(r.choice([f"torch.tanh({h})", f"torch.sin({h})", f"torch.sigmoid({h})", f"F.gelu({h})", f"F.silu({h})", f"F.softplus({h})",
                           f"F.relu({h})", f"F.leaky_relu({h}, 0.1)", f"{h}.softmax(-1)", f"{h}.softmax(1)", f"F.normalize({h}, dim=-1)",
                           f"F.prelu({h}, {g.param(r, 1)})", f"F.glu(torch.cat([{h}, {h}.flip(-1)], -1), -1)", f"{h}.clamp(-1, 1)", f"torch.atan({h}) * {g.param(r)}"]))


@ordinary
def norm(g: Source, r: Random, h: str) -> str:
    d, w, v = g.d, g.vector(r), g.vector(r)
    rms = f"{h} * torch.rsqrt({h}.pow(2).mean(-1, keepdim=True) + 1e-3)"
    return g.let(r.choice([f"F.layer_norm({h}, ({d},), {w}, {v}, 1e-3)", f"F.layer_norm({h}, ({d},), {w}, None, 1e-3)", f"F.rms_norm({h}, ({d},), {w}, 1e-3)", f"{w} * ({rms})", f"({rms}) * (1 + {w})",
                           f"F.group_norm({h}.transpose(1, 2), 2, {w}, {v}, 1e-3).transpose(1, 2)", f"F.layer_norm({h}, ({g.t}, {d}), {g.matrix(r, g.t, d)}, None, 1e-3)",
                           f"({h} - {h}.mean((1, 2), keepdim=True)) * {w}", f"{h} / (1 + {h}.norm(dim=(1, 2), keepdim=True)) * {w} + {v}"]))


@ordinary
def convolution(g: Source, r: Random, h: str) -> str:
    d, t = g.d, g.t
    across, v = f"{h}.transpose(1, 2)", g.vector(r)
    k3, k1 = f"{g.param(r, d, d, 3)} * 0.5", g.param(r, d, d, 1)
    return g.let(r.choice([
        f"F.conv1d({across}, {k3}, {v}, padding=1).transpose(1, 2)", f"F.conv1d({across}, {g.param(r, d, 1, 3)}, {v}, padding=1, groups={d}).transpose(1, 2)",
        f"F.conv1d({across}, {k1}).transpose(1, 2)", f"F.conv1d({across}, {g.matrix(r)}.unsqueeze(-1), {v}).transpose(1, 2)",
        f"F.conv2d({h}.unsqueeze(1), {g.param(r, 2, 1, 3, 3)}, {g.vector(r, 2)}, padding=1).sum(1)", f"F.conv2d({h}[:, None], {g.param(r, 1, 1, 3, 3)}, padding='same')[:, 0]",
        f"F.conv_transpose1d({across}, {k3}, {v}, padding=1).transpose(1, 2)", f"{g.module(f'nn.Conv1d({d}, {d}, 3, padding=1)')}({across}).transpose(1, 2)",
        f"(F.unfold({h}[:, None], 3, padding=1).view({h}.shape[0], 9, {t}, {d}) * {g.param(r, 9, 1, 1)}).sum(1)",
        f"F.conv1d(F.pad({across}, (2, 0)), {k3} / {g.param(r)}).transpose(1, 2)",
        f"{g.module('nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Conv2d(2, 1, 1))')}({h}[:, None])[:, 0]",
    ]))


@ordinary
def attention(g: Source, r: Random, h: str) -> str:
    d = g.d
    q, k, v = (g.let(f"F.linear({h}, {g.matrix(r)}{', ' + g.vector(r) if r.random() < 0.3 else ''})", "z") for _ in range(3))
    scores = f"{q} @ {k}.mT / {d} ** 0.5"
    bias = g.matrix(r, g.t, g.t)
    return g.let(r.choice([
        f"torch.softmax({scores}, -1) @ {v}", f"torch.softmax({scores} + {bias}, -1) @ {v}", f"F.scaled_dot_product_attention({q}, {k}, {v})",
        f"F.scaled_dot_product_attention({q}, {k}, {v}, attn_mask={bias})", f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal=True)",
        f"F.scaled_dot_product_attention({q}[:, None], {k}[:, None], {v}[:, None], attn_mask={bias}.expand({h}.shape[0], 1, -1, -1))[:, 0]",
        f"torch.softmax(({scores}).masked_fill(~mask[:, None, :], -1e9), -1) @ {v}",
        f"torch.einsum('nqk,nkd->nqd', torch.einsum('nqd,nkd->nqk', {q}, {k}).softmax(-1), {v})",
        f"F.dropout(torch.softmax({scores}, -1), 0.2, self.training) @ {v}",
        f"torch.softmax({q}.view({h}.shape[0], -1, 2, {d // 2}).transpose(1, 2) @ {k}.view({h}.shape[0], -1, 2, {d // 2}).permute(0, 2, 3, 1), -1).matmul({v}.unflatten(-1, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)",
        f"torch.softmax({scores} * {g.param(r)}, -1) @ {v}",
        f"torch.softmax({g.param(r, 1, d)}.expand({h}.shape[0], -1, -1) @ {k}.mT, -1) @ {v} + {h}",
        f"torch.softmax(torch.cat([{g.param(r, 1, d)}.expand({h}.shape[0], 1, {d}), {q}], 1)[:, 1:] @ {k}.mT, -1) @ {v}",
    ]))


@ordinary
def multihead(g: Source, r: Random, h: str) -> str:
    m = g.module(f"nn.MultiheadAttention({g.d}, 2, dropout={r.choice([0.0, 0.1])}, batch_first=True{r.choice(['', ', add_bias_kv=True', ', bias=False'])})")
    return g.let(r.choice([f"{m}({h}, {h}, {h}, need_weights=False)[0]", f"{m}({h}, {h}, {h}, key_padding_mask=~mask)[0]", f"{m}({h}, torch.tanh({h}), {h})[0]"]))


@ordinary
def gate(g: Source, r: Random, h: str) -> str:
    return g.let(r.choice([f"{h} * torch.sigmoid({h} @ {g.matrix(r)})", f"{h} + {g.param(r)} * torch.tanh({h})", f"F.silu(F.linear({h}, {g.matrix(r)})) * F.linear({h}, {g.matrix(r)})",
                           f"torch.lerp({h}, torch.tanh({h}), {g.vector(r)})", f"{g.param(r)} * {h} + (1 - {g.param(r)}) * torch.sin({h})", f"F.bilinear({h}, {h}, {g.param(r, g.d, g.d, g.d)} * 0.3)",
                           f"torch.pow({h}.abs() + 0.5, {g.vector(r)})", f"torch.softmax({h} / (0.5 + {g.param(r)}), -1)"]))


@ordinary
def positions(g: Source, r: Random, h: str) -> str:
    t, d, n = g.t, g.d, f"{h}.shape[0]"
    p, table = g.matrix(r, t, d), g.param(r, t + 2, d)
    at = g.name("at")
    g.line(f"{at} = torch.arange({h}.shape[1])")
    return g.let(r.choice([
        f"{h} + {p}", f"{h} + {p}[None]", f"{h} + {g.param(r, 1, t + 1, d)}[:, :{h}.shape[1]]", f"{h} + F.embedding({at}, {table})", f"{h} + F.embedding({at}.expand({n}, -1), {table})",
        f"{h} + {table}[{at}]", f"{h} + {table}[{at}].expand({n}, -1, -1)", f"{h} + {p}.repeat({n}, 1, 1)", f"{h} + torch.stack([{p}] * {n})", f"{h} + {table}.index_select(0, {at})",
        f"torch.cat([{g.param(r, 1, 1, d)}.expand({n}, -1, -1), {h}], 1)[:, :-1]", f"torch.cat([{g.param(r, 1, d)}.repeat({n}, 1, 1), {h}], 1)[:, 1:] + {h}",
        f"torch.cat([{g.vector(r)}.expand({n}, 1, {d}), {h}], dim=1)[:, :-1]", f"{h} + torch.cat([{p}.unsqueeze(0)] * {n})",
        f"{h} + {g.module(f'nn.Embedding({t + 1}, {d})')}({at})", f"{h} + {g.module(f'nn.Embedding({t + 1}, {d})')}((mask.cumsum(1) - 1).clamp(min=0))", f"{h} + {table}[(mask.cumsum(1) - 1).clamp(min=0)]",
        f"{h} + {p}.unsqueeze(0).repeat_interleave({n}, 0)", f"{h} + {p}.broadcast_to({h}.shape)", f"{h} + {p}.expand_as({h})", f"{h} + torch.zeros_like({h}).add({p})",
    ]))


@ordinary
def embeddings(g: Source, r: Random, h: str) -> str:
    d = g.d
    p = g.param(r, 6, d)
    n = f"{h}.shape[0]"
    return g.let(h + " + " + r.choice([
        f"F.embedding(ids, {p})", f"F.embedding(ids, {p}, padding_idx=0)", f"F.embedding(ids, 1.1 * {p}, padding_idx=0)", f"F.embedding(ids, torch.tanh({p}), padding_idx=1)", f"{p}[ids]", f"(2 * {p})[ids]",
        f"F.one_hot(ids, 6).to({h}.dtype) @ {p}", f"{g.module(f'nn.Embedding(6, {d}, padding_idx=0)')}(ids)", f"{p}.index_select(0, ids.flatten()).view({n}, -1, {d})", f"F.embedding(ids, {p}, scale_grad_by_freq=True)",
        f"{p}[ids.reshape(-1)].view({n}, -1, {d})", f"F.embedding(ids[:, :1], {p}, padding_idx=0)", f"{g.module(f'nn.EmbeddingBag(6, {d}, mode=chr(115) + chr(117) + chr(109))')}(ids)[:, None]", f"F.embedding(ids, {g.param(r, 6, 2)} @ {g.param(r, 2, d)}, padding_idx=0)",
        f"torch.gather({p}.expand({n}, -1, -1), 1, ids[..., None].expand(-1, -1, {d}))", f"F.embedding_bag(ids, {p}, mode='mean')[:, None]", f"{p}.take_along_dim(ids.reshape(-1, 1), 0).view({n}, -1, {d})", f"torch.stack([{p}[row] for row in ids])",
    ]))


@ordinary
def masking(g: Source, r: Random, h: str) -> str:
    m, v = "mask[..., None]", g.vector(r)
    return g.let(r.choice([f"{h}.masked_fill(~{m}, 0.1)", f"{h} * {m}", f"torch.where({m}, {h}, {v})", f"{h} * {m} + {v} * ~{m}", f"torch.where({m}, F.linear({h}, {g.matrix(r)}), {h})",
                           f"{h}.masked_fill(~{m}, 0.0).sum(1, keepdim=True) / mask.sum(1)[:, None, None] * {v} + {h}", f"torch.where({h} > 0, {h}, {v} * {h})", f"torch.maximum({h}, {v})"]))


@ordinary
def in_place(g: Source, r: Random, h: str) -> str:
    h = g.let(r.choice([f"{h}.clone()", f"{h} * 1.0", f"torch.tanh({h})" if r.random() < 0.0 else f"{h} + 0"]))
    v = g.vector(r)
    g.line(r.choice([f"{h}[:, 0] = {v}", f"{h} += {v}", f"{h}.mul_({v})", f"{h}[..., :2] *= {g.param(r, 2)}", f"{h}[mask] = {v}", f"{h}[:, 0] += F.linear({h}[:, -1].clone(), {g.matrix(r)})",
                     f"{h}[~mask] = {v}.to({h}.dtype)", f"{h}.add_(F.linear({h}, {g.matrix(r)}).detach() * {v})", f"{h}.masked_fill_(mask[..., None], 0.3).add_({v})", f"{h}.copy_({h}.detach() * {v})",
                     f"{h}[:, :1].mul_({v})", f"{h}[:, 0], {h}[:, -1] = {v}, {v} * 2", f"torch.tanh_({h})", f"{h}.addcmul_({h}.detach().clone(), {v})"]))
    return h


@ordinary
def dropout(g: Source, r: Random, h: str) -> str:
    v = g.vector(r)
    return g.let(r.choice([f"F.dropout({h}, 0.3, self.training)", f"F.dropout1d({h}, 0.3, self.training)", f"{g.module('nn.Dropout(0.2)')}({h})", f"F.alpha_dropout({h}, 0.2, self.training)",
                           f"{h} * (torch.rand_like({h}) > 0.2)", f"{h} + 0.1 * torch.randn_like({h}) * {v}", f"{h} * torch.bernoulli(torch.full_like({h}, 0.8))", f"{h} + F.dropout({v} * 1.0, 0.3, self.training)",
                           f"{h} * (torch.rand({h}.shape[0], 1, 1) > 0.2)", f"F.feature_alpha_dropout({h}, 0.2, self.training)", f"{h} + F.dropout({v}.expand_as({h}), 0.3, self.training)", f"F.dropout(F.linear({h}, {g.matrix(r)}), 0.2, self.training, inplace=True)"]))


@ordinary
def recurrence(g: Source, r: Random, h: str) -> str:
    d = g.d
    s, outs = g.name("s"), g.name("outs")
    start = r.choice([f"torch.zeros({h}.shape[0], {d})", f"{g.vector(r)}.expand({h}.shape[0], {d})", f"{h}[:, 0]", f"{h}.new_zeros({h}.shape[0], {d})", f"torch.zeros_like({h}[:, 0])", f"{g.param(r, 1, d)}.repeat({h}.shape[0], 1)", f"torch.zeros(1, {d})", f"torch.zeros({d})"])
    w, u, v = g.matrix(r), g.matrix(r), g.vector(r)
    cell = g.module(f"nn.{r.choice(['GRUCell', 'RNNCell'])}({d}, {d})") if r.random() < 0.3 and "(1," not in start and "(4)" not in start and "(6)" not in start and start.startswith(("torch.zeros(h", h)) else None
    step = f"{cell}(x_t, {s})" if cell else r.choice([f"torch.tanh(F.linear(x_t, {w}) + F.linear({s}, {u}))", f"torch.tanh({s} @ {w} + x_t * {v})", f"0.5 * {s} + torch.tanh(torch.cat([x_t, {s}.expand_as(x_t)], -1) @ {g.param(r, 2 * d, d)})", f"{s} + torch.sigmoid(F.linear({s}, {w}, {v})) * x_t"])
    g.line(f"{s}, {outs} = {start}, []\nfor x_t in {h}.unbind(1):\n    {s} = {step}\n    {outs}.append({s})")
    return g.let(f"torch.stack({outs}, 1)")


@ordinary
def fixed_loop(g: Source, r: Random, h: str) -> str:
    z = g.let(r.choice([h, f"torch.zeros_like({h})"]), "z")
    g.line(f"for _ in range({r.randint(2, 3)}):\n    {z} = torch.tanh({z} @ {g.matrix(r)} + {h})")
    return z


@ordinary
def custom(g: Source, r: Random, h: str) -> str:
    return g.let(r.choice([f"{g.cls('Round')}.apply({h})", f"{g.cls('Linear')}.apply({h}, {g.matrix(r)})", f"{g.cls('Linear')}.apply({h}, {g.param(r, g.d, g.d)})", f"{h} + {g.cls('Reverse')}.apply({h}) @ {g.matrix(r)}",
                           f"{g.cls('Product')}.apply({h}, torch.tanh({h}))", f"{h} + {g.cls('Reverse')}.apply({g.vector(r)})", f"{h} + F.linear({g.cls('Reverse')}.apply({h}), {g.matrix(r)}, {g.vector(r)})"]))


@ordinary
def checkpointed(g: Source, r: Random, h: str) -> str:
    w, v = g.param(r, g.d, g.d), g.param(r, g.d)
    body = r.choice([f"torch.tanh(F.linear(z, {w}, {v}))", f"F.dropout(z @ {w}, 0.2, self.training)", f"z + F.linear(F.gelu(z), {w}.T) * {v}", f"{g.module(f'nn.Sequential(nn.Linear({g.d}, {g.d}), nn.Tanh())')}(z)"])
    return g.let(f"checkpoint(lambda z: {body}, {h}, use_reentrant=False)")


@ordinary
def detached_head(g: Source, r: Random, h: str) -> str:
    w = g.matrix(r)
    g.line(f"aux.append(torch.tanh(F.linear({r.choice([h + '.detach()', g.cls('Reverse') + '.apply(' + h + ')', h, h + '.data' if r.random() < 0.1 else h])}, {w})).square().mean((1, 2)))")
    return h


@ordinary
def detached_use(g: Source, r: Random, h: str) -> str:
    w = g.matrix(r)
    return g.let(r.choice([f"{h} + F.linear({h}.detach(), {w})", f"F.linear({h}, {w}) - 0.5 * F.linear({h}, {w}.detach())", f"F.linear({h}, {w}, {g.vector(r)}) + 0.3 * F.linear({h}, {g.param(r, g.d, g.d)}.detach(), {g.param(r, g.d)}) ** 2",
                           f"({h} - {h}.detach()) @ {w} + {h}.detach()", f"{h} * torch.sigmoid({h} @ {w}).detach()"]))


@ordinary
def shared_layer_pieces(g: Source, r: Random, h: str) -> str:
    w, v = g.param(r, g.d, g.d), g.param(r, g.d)
    return g.let(r.choice([f"F.linear(torch.tanh({h}), {w}, {v}) + F.linear({h}, {w}.detach(), {v}.detach()) ** 2", f"F.linear({h}, {w}, {v}) + 0.5 * F.linear({h}, {w})", f"F.linear({h}, {w}, {v}) + {v}",
                           f"F.linear(F.linear({h}, {w}, {v}), {w}.T, {v})", f"F.linear({h}, {w}, {v}) * {w}.sum()", f"F.linear({h}[:, :1], {w}, {v}) + F.linear({h}, {w}.detach(), {v})"]))


@ordinary
def example_statistics(g: Source, r: Random, h: str) -> str:
    mu = g.name("mu")
    g.line(f"with torch.no_grad():\n    {mu} = {h}.{r.choice(['mean((1, 2), keepdim=True)', 'abs().amax((1, 2), keepdim=True)', 'std(2, keepdim=True)', 'norm(dim=2, keepdim=True)'])} + 0.5")
    return g.let(f"{h} / {mu} * {g.vector(r)}")


@ordinary
def buffers(g: Source, r: Random, h: str) -> str:
    b = g.buffer(f"torch.rand({g.d}) + 0.5")
    count = g.buffer("torch.zeros(())")
    g.line(r.choice([f"{count}.add_(1)", f"{count} += 1", f"{count}.copy_({count} + 1)"]))
    return g.let(r.choice([f"{h} * {b}", f"{h} + {b} * {g.vector(r)}", f"{h} * {b} / (1 + 0.1 * {count})", f"F.linear({h}, {g.matrix(r)} * {b})"]))


@ordinary
def reshapes(g: Source, r: Random, h: str) -> str:
    d, w = g.d, g.matrix(r)
    n = f"{h}.shape[0]"
    return g.let(r.choice([
        f"F.linear({h}.reshape(-1, {d}), {w}).reshape({n}, -1, {d})", f"F.linear({h}.flatten(0, 1), {w}, {g.vector(r)}).unflatten(0, ({n}, -1))", f"torch.cat([F.linear(c, {w}) for c in {h}.split(1, 1)], 1)",
        f"torch.cat({h}.chunk(2, -1)[::-1], -1) @ {w}", f"F.linear({h}.flip(1), {w}).cumsum(1)", f"{h}.roll(1, 1) @ {w}", f"{h}.sort(1).values @ {w}", f"F.linear({h}.unsqueeze(1), {w}).squeeze(1)",
        f"F.linear({h}.view({n}, -1), {g.matrix(r, g.t * d, g.t * d)} / 2).view_as({h})" if g.t * d <= 16 else f"{h} @ {w}", f"torch.stack([F.linear({h}[:, i], {w}) for i in range({h}.shape[1])], 1)",
        f"{h}[:, torch.arange({h}.shape[1]).flip(0)] @ {w}", f"F.linear({h}.repeat(1, 2, 1), {w})[:, :{h}.shape[1]]", f"{h}.gather(1, ids[..., None].clamp(max={g.t - 1}).expand(-1, -1, {d})) @ {w}",
        f"torch.as_strided({h}.contiguous(), {h}.shape, {h}.contiguous().stride()) @ {w}", f"{h}.mean(1, keepdim=True) @ {w} + {h}", f"{h}.amax(1, keepdim=True) @ {w} + {h}", f"F.linear({h}.repeat_interleave(2, 0), {w})[::2]",
        f"F.linear(torch.cat([{h}, {h}.flip(1)], 1), {w}).view({n}, 2, -1, {d}).sum(1)", f"torch.complex({h}, {h}.flip(-1)).abs() @ {w}", f"F.interpolate({h}.transpose(1, 2), scale_factor=2).transpose(1, 2)[:, ::2] @ {w}",
    ]))


@ordinary
def pooled(g: Source, r: Random, h: str) -> str:
    s = g.let(r.choice([f"{h}.mean(1)", f"{h}[:, 0]", f"{h}.amax(1)", f"({h} * mask[..., None]).sum(1)", f"(({h} @ {g.vector(r)}).softmax(-1)[..., None] * {h}).sum(1)"]), "s")
    return g.let(f"{h} + torch.tanh({r.choice([f'F.linear({s}, {g.matrix(r)}, {g.vector(r)})', f'{s} @ {g.matrix(r)}', f'{s} * {g.vector(r)} + {g.vector(r)}', f'torch.addmm({g.vector(r)}, {s}, {g.matrix(r)})'])})[:, None]")


@ordinary
def mixture(g: Source, r: Random, h: str) -> str:
    d = g.d
    experts = g.param(r, 2, d, d)
    probability = g.let(f"({h} @ {g.param(r, d, 2)}).softmax(-1)", "probability")
    return g.let(r.choice([
        f"torch.einsum('nte,ntd,edf->ntf', {probability}, {h}, {experts})", f"sum({probability}[..., e, None] * F.linear({h}, {experts}[e]) for e in range(2))", f"({probability}.unsqueeze(-1) * torch.einsum('ntd,edf->ntef', {h}, {experts})).sum(2)",
        f"torch.einsum('ntd,ntdf->ntf', {h}, {experts}[{probability}.argmax(-1)])", f"sum((ids % 2 == e)[..., None] * F.linear({h}, {experts}[e]) for e in range(2))",
    ]))


@ordinary
def prompt(g: Source, r: Random, h: str) -> str:
    p = g.matrix(r, 2, g.d)
    longer = g.let(f"torch.cat([{r.choice([f'{p}.expand({h}.shape[0], -1, -1)', f'{p}.unsqueeze(0).repeat({h}.shape[0], 1, 1)', f'F.embedding(torch.arange(2).expand({h}.shape[0], -1), {p})'])}, {h}], 1)")
    return g.let(f"(torch.softmax({longer} @ {longer}.mT, -1) @ {longer} @ {g.matrix(r)})[:, 2:]")


# Rows that are chosen: as many for each example or not, in their order or not. Exact or refused; never guessed.


@ordinary
def chosen_rows(g: Source, r: Random, h: str) -> str:
    z, w = g.name("z"), g.matrix(r)
    how = r.choice([f"{z}[mask] = F.linear({h}[mask], {w})", f"{z}[mask] = {h}[mask] @ {w} + {g.vector(r)}", f"{z} = {z}.masked_scatter(mask[..., None], F.linear({h}[mask], {w}))", f"{z}[mask] = {g.vector(r)}",
                    f"{z} = {z}.flatten(0, 1).index_add(0, mask.flatten().nonzero()[:, 0], F.linear({h}[mask], {w})).view_as({h})", f"{z} = {z}.index_put((mask,), F.linear({h}[mask], {w}))"])
    g.line(f"{z} = {h}.clone()\n{how}")
    return z


@ordinary
def routed(g: Source, r: Random, h: str) -> str:
    rows, out = g.name("rows"), g.name("out")
    experts = [g.matrix(r) for _ in range(2)]
    g.line(f"{rows} = {h}.reshape(-1, {g.d})\n{out} = torch.zeros_like({rows})\nchoice = ids.reshape(-1) % 2")
    for e, w in enumerate(experts):
        g.line(f"{out} = {out}.index_add(0, (choice == {e}).nonzero()[:, 0], F.linear({rows}[choice == {e}], {w}))")
    return g.let(f"{out}.view_as({h})")


@ordinary
def time_first(g: Source, r: Random, h: str) -> str:
    z = g.let(f"{h}.transpose(0, 1)", "z")
    w = g.matrix(r)
    return g.let(r.choice([f"F.linear({z}, {w}).transpose(0, 1)", f"({z} @ {w} + {g.vector(r)}).transpose(0, 1)", f"F.linear({z}.reshape(-1, {g.d}), {w}).view({g.t}, -1, {g.d}).transpose(0, 1)",
                           f"({z} * {g.vector(r)}).transpose(0, 1)", f"({z} + {g.param(r, g.t, 1, g.d)}).transpose(0, 1)", f"F.layer_norm({z}, ({g.d},), {g.vector(r)}, None, 1e-3).transpose(0, 1)"]))


@ordinary
def one_by_one(g: Source, r: Random, h: str) -> str:
    w = g.matrix(r)
    return g.let(r.choice([f"torch.stack([torch.tanh(F.linear(e, {w})) for e in {h}])", f"torch.stack([e @ {w} for e in {h}.unbind(0)])", f"torch.cat([F.linear(e, {w}) for e in {h}.split(1)])", f"torch.cat([F.linear({h}[i : i + 1], {w}) for i in range({h}.shape[0])])"]))


# Hostile blocks.


@hostile
def batch_statistics(g: Source, r: Random, h: str) -> str:
    v = g.vector(r)
    stat = r.choice([f"{h}.mean(0)", f"{h}.mean(0, keepdim=True)", f"{h}.mean()", f"{h}.amax(0)", f"{h}.mean((0, 1))", f"{h}.abs().max()", f"{h}.norm()", f"{h}.sum(0) / 5"])
    if r.random() < 0.6:
        stat = f"({stat}).detach()"
    return g.let(r.choice([f"{h} - {stat}", f"{h} / (1 + {stat}.abs())", f"{h} * {v} + 0.1 * {stat}", f"{h} + 1e-3 * {stat}", f"F.linear({h}, {g.matrix(r)}) + 0.2 * {stat}"]))


@hostile
def batch_norm(g: Source, r: Random, h: str) -> str:
    d = g.d
    return g.let(r.choice([f"{g.module(f'nn.BatchNorm1d({d})')}({h}.transpose(1, 2)).transpose(1, 2)", f"F.batch_norm({h}.transpose(1, 2), None, None, {g.vector(r)}, {g.vector(r)}, True).transpose(1, 2)",
                           f"{g.module(f'nn.BatchNorm1d({d}, track_running_stats=False)')}({h}.transpose(1, 2)).transpose(1, 2)", f"F.layer_norm({h}.permute(1, 2, 0), ({h}.shape[0],)).permute(2, 0, 1) * {g.vector(r)}",
                           f"F.instance_norm({h}.transpose(0, 1), eps=1e-3).transpose(0, 1) * {g.vector(r)}", f"F.group_norm({h}.transpose(0, 2), 1, eps=1e-3).transpose(0, 2) * {g.vector(r)}"]))


@hostile
def mixed_rows(g: Source, r: Random, h: str) -> str:
    v = g.vector(r)
    p = g.let(r.choice([f"torch.arange({h}.shape[0]).roll(1)", f"torch.randperm({h}.shape[0])", f"torch.arange({h}.shape[0]).flip(0)", f"{h}[:, 0, 0].argsort()"]), "order")
    return g.let(r.choice([f"0.7 * {h} + 0.3 * {h}[{p}]", f"{h} + 0.2 * {h}[{p}].detach()", f"{h} * {h}[{p}].std(1, keepdim=True, unbiased=False).detach()", f"{h} + {v} * {h}.roll(1, 0).detach()", f"{h} + 0.1 * {h}.cumsum(0)",
                           f"{h} + 0.1 * {h}.cumsum(0).detach()", f"torch.einsum('ab,btd->atd', torch.softmax({h}.mean(1) @ {h}.mean(1).T, -1), {h})", f"{h} * {h}.softmax(0)", f"{h} * {h}.detach().softmax(0)",
                           f"{h}[{p}][{p}.argsort()] @ {g.matrix(r)}", f"F.linear({h}[{p}], {g.matrix(r)})[{p}.argsort()]", f"{h}.sort(0).values", f"{h} + {h}.flip(0).detach() * 0.1"]))


@hostile
def fake_quantised(g: Source, r: Random, h: str) -> str:
    s = g.let(r.choice([f"{h}.detach().abs().max() / 7", f"{h}.detach().std() / 2", f"({h}.detach().amax() - {h}.detach().amin()) / 15"]), "scale")
    return g.let(f"{h} + (({h} / {s}).round() * {s} - {h}).detach()")


@hostile
def branch(g: Source, r: Random, h: str) -> str:
    # The threshold is so near the value that a perturbation goes over it.
    value, s, w = round(r.uniform(0.5, 1.5), 3), g.name("gate"), g.param(r, g.d, g.d)
    g.init.append(f"self.{s} = nn.Parameter(torch.tensor({value}))")
    s, at = f"self.{s}", f"{value + r.choice([-0.001, 0.001]):.4f}"
    test = r.choice([f"{s} > {at}", f"{s}.item() > {at}", f"float({s}) > {at}", f"({s} > {at}).all()", f"bool({s} > {at})", f"torch.equal({s}, {s}.clamp(max={at}))", f"{s}.tolist() > {at}",
                     f"{s}.detach().numpy() > {at}", f"not torch.allclose({s}, {s}.clamp(max={at}), rtol=0)", f"(0.5 * {s}).item() > 0.5 * {at}", f"torch.is_nonzero(({s} > {at}).sum())", f"{s}.data > {at}",
                     f"len({w}[({s} > {at}).expand_as({w})]) > 0", f"int((1000 * {s}).floor()) > 1000 * {at}", f"{s}.detach() > {at}", f"torch.stack([{s}, 0 * {s} + {at}]).argmax() == 0", f"max({s}, torch.tensor({at})) is {s}",
                     f"{h}.mean() > 0.05", f"{h}.sum().item() > 0", f"{h}.abs().max() > 1", f"{h}[0, 0, 0] > 0", f"{h}.detach().norm() > 3", f"({h}[:, 0, 0] > 0).any()"])
    name = g.name("h")
    g.line(f"{name} = {h} * {s} + {h} @ {w}\nif {test}:\n    {name} = torch.tanh(2 * {name})")
    return name


@hostile
def value_read(g: Source, r: Random, h: str) -> str:
    s, w = g.param(r), g.param(r, g.d, g.d)
    return g.let(r.choice([f"{h} * {s}.item() + {s} * torch.tanh({h})", f"{h} / float({w}.norm())", f"F.linear({h}, {w}) / {w}.detach().abs().max().item()", f"{h} + torch.tensor({w}[0].tolist())", f"{h} * torch.from_numpy({s}.detach().numpy().copy()) + {s}",
                           f"{h} * {s} + len({w}.nonzero()) * 0.01", f"{h} @ {w} * torch.as_tensor(float({s}))", f"{h} @ {w} / (1 + {h}.detach().mean().item())", f"{h} + torch.tensor([float(v) for v in {w}[0]]) * {s}", f"{h} @ {w} + torch.full(({g.d},), {s}.item())",
                           f"{h} @ {w} + {s}.data", f"{h} @ {w}.data + {s}", f"{h} @ torch.tensor({w}.detach().numpy()) + {s}", f"{h} @ {w} + {w}.detach().clone()[0]", f"{h} * {s} + torch.Tensor.detach({s})"]))


@hostile
def data_written(g: Source, r: Random, h: str) -> str:
    s, w = g.param(r), g.param(r, g.d, g.d)
    g.line(r.choice([f"{s}.data.clamp_(0.7, 1.2)", f"with torch.no_grad():\n    {s}.clamp_(0.7, 1.2)", f"{w}.data.copy_({w}.data.clamp(-0.9, 0.9))", f"{w}.data = {w}.data.clamp(-0.9, 0.9)", f"with torch.no_grad():\n    {w}.copy_({w} / {w}.norm(dim=1, keepdim=True).clamp(min=1.5))",
                     f"{w}.data[0].mul_(0.5)", f"{w}.detach().mul_(0.9)", f"torch.clamp({w}.data, -0.9, 0.9, out={w}.data)", f"{w}.data.view(-1)[0] = 0.0", f"with torch.no_grad():\n    {w} /= {w}.norm().clamp(min=2)"]))
    return g.let(f"({h} @ {w}) / {s}")


@hostile
def hooked(g: Source, r: Random, h: str) -> str:
    z = g.let(f"F.linear({h}, {g.matrix(r)})")
    act = r.choice(["g / (g.norm() + 1e-3)", "g - 0.5 * g.mean(0, keepdim=True)", "g.clamp(-0.01, 0.01)", "2 * g", "g * (g.abs() > g.abs().mean())", "-g", "g / (1 + g.norm(dim=(1, 2), keepdim=True))"])
    g.line(f"if {z}.requires_grad:\n    {z}.register_hook(lambda g: {act})")
    return g.let(f"torch.tanh({z})")


@hostile
def joint_backward(g: Source, r: Random, h: str) -> str:
    return g.let(f"{g.cls(r.choice(['Normed', 'Centred', 'Clipped']))}.apply({r.choice([h, f'F.linear({h}, {g.matrix(r)})'])})")


@hostile
def backward_inside(g: Source, r: Random, h: str) -> str:
    w = g.param(r, g.d, g.d)
    part = r.choice([f"lambda z: torch.tanh(z @ {w})", g.module(f"nn.Linear({g.d}, {g.d})")])
    z = f"{h} if {h}.requires_grad else {h}.detach().requires_grad_()"
    return g.let(r.choice([f"{g.cls('Again')}.apply({part}, {z})", f"checkpoint({part}, {z}, use_reentrant=True)"]))


@hostile
def state(g: Source, r: Random, h: str) -> str:
    name = g.name("last")
    g.init.append(f"self.{name} = None")
    g.line(f"if self.{name} is not None and self.{name}.shape == {h}.shape:\n    {h} = {h} + 0.3 * self.{name}\nself.{name} = torch.tanh({h}.detach())")
    return g.let(f"F.linear({h}, {g.matrix(r)})")


@hostile
def counted(g: Source, r: Random, h: str) -> str:
    name = g.name("count")
    g.init.append(f"self.{name} = 0")
    g.line(f"self.{name} += 1")
    return g.let(r.choice([f"{h} * (1 + 0.1 * self.{name})", f"{h} if self.{name} % 2 else torch.tanh({h} @ {g.matrix(r)})"]))


@hostile
def moving_buffer(g: Source, r: Random, h: str) -> str:
    b = g.buffer(f"torch.zeros({g.d})")
    g.line(f"with torch.no_grad():\n    {b}.{r.choice([f'mul_(0.9).add_(0.1 * {h}.mean((0, 1)))', f'lerp_({h}.detach().mean((0, 1)), 0.1)', f'copy_({h}.mean((0, 1)))'])}")
    return g.let(f"{h} - {b} * {g.vector(r)}")


@hostile
def out_argument(g: Source, r: Random, h: str) -> str:
    z, w = g.name("z"), g.param(r, g.d, g.d)
    g.line(r.choice([f"with torch.no_grad():\n    {z} = torch.empty({h}.shape[0] * {h}.shape[1], {g.d})\n    torch.mm({h}.reshape(-1, {g.d}), {w}, out={z})\n    {z} = {z}.view_as({h})", f"with torch.no_grad():\n    {z} = torch.empty_like({h})\n    torch.add({h}, {g.param(r, g.d)}, out={z})",
                     f"with torch.no_grad():\n    {z} = torch.matmul({h}, {w}, out=torch.empty_like({h}))", f"with torch.no_grad():\n    {z} = torch.mul({w}[0], 2, out=torch.empty({g.d}))"]))
    return g.let(f"{h} + 0.3 * {z} * {w}[0]")


@hostile
def no_gradient_use(g: Source, r: Random, h: str) -> str:
    z, w = g.name("z"), g.param(r, g.d, g.d)
    g.line(f"with torch.no_grad():\n    {z} = {r.choice([f'torch.tanh({h} @ {w})', f'F.linear({h}, {w}, {g.param(r, g.d)})', f'{w} * 2', f'({h} @ {w}).argmax(-1, keepdim=True) * 0.1', f'({h} @ {w} > 0).to({h}.dtype)'])}")
    return g.let(r.choice([f"{h} @ {w} + ({h} @ {z} if {z}.ndim == 2 else {z})", f"({h} @ {w}) * ({z}.sum() if {z}.ndim == 2 else 1 + 0.1 * {z})"]))


@hostile
def counts_by_value(g: Source, r: Random, h: str) -> str:
    z, chosen, w = g.name("z"), g.name("chosen"), g.matrix(r)
    g.line(f"{chosen} = {r.choice([f'{h}[..., 0] > 0', f'{h}.mean(-1) > {h}.mean()', f'({h} @ {g.param(r, g.d)}) > 0', f'{h}.norm(dim=-1) > {h}.detach().norm(dim=-1).mean()'])}\n{z} = {h} * 1.0\n{z}[{chosen}] = F.linear({h}[{chosen}], {w})")
    return z


@hostile
def capacity(g: Source, r: Random, h: str) -> str:
    rows, top = g.name("rows"), g.name("top")
    g.line(f"{rows} = {h}.reshape(-1, {g.d})\n{top} = ({rows} @ {g.param(r, g.d)}).topk({rows}.shape[0] // 2 or 1).indices")
    return g.let(f"{rows}.index_add(0, {top}, torch.tanh(F.linear({rows}[{top}], {g.matrix(r)}))).view_as({h})")


@hostile
def bag(g: Source, r: Random, h: str) -> str:
    return g.let(r.choice([f"torch.cat([{g.param(r, 1, g.t, g.d)}, {h}])[1:] @ {g.matrix(r)}", f"torch.cat([{g.param(r, 1, g.t, g.d)}, {h} @ {g.matrix(r)}])[:-1]", f"(torch.cat([{h}, {g.param(r, 2, g.t, g.d)}], 0) @ {g.matrix(r)})[: {h}.shape[0]]",
                           f"torch.cat([{h}, {h}], 0)[: {h}.shape[0]] @ {g.matrix(r)}", f"(torch.cat([{h}, 2 * {h}], 0) @ {g.matrix(r)}).view(2, *{h}.shape).sum(0)", f"(torch.stack([{h}, 2 * {h}]) @ {g.matrix(r)}).sum(0)", f"F.linear({h}.repeat(2, 1, 1), {g.matrix(r)})[{h}.shape[0] :]"]))


@hostile
def batch_of_parameters(g: Source, r: Random, h: str) -> str:
    p = g.param(r, g.n, g.d)
    return g.let(r.choice([f"{h} + {p}[: {h}.shape[0], None]", f"{h} * {g.param(r, g.n, 1, 1)}[: {h}.shape[0]]", f"torch.einsum('nd,ntd->ntd', {p}[: {h}.shape[0]], {h})", f"torch.einsum('bn,ntd->btd', {g.param(r, g.n, g.n)}[: {h}.shape[0], : {h}.shape[0]], {h})"]))


@hostile
def max_norm(g: Source, r: Random, h: str) -> str:
    m = g.module(f"nn.Embedding(6, {g.d}, max_norm=1.0)")
    return g.let(f"{h} + {m}(ids)")


@hostile
def regulariser(g: Source, r: Random, h: str) -> str:
    g.line(f"aux.append({r.choice([f'1e-2 * {g.matrix(r)}.square().sum().expand({h}.shape[0])', f'1e-2 * {g.vector(r)}.abs().sum() * torch.ones({h}.shape[0])', f'1e-2 * {g.matrix(r)}.norm().repeat({h}.shape[0])'])})")
    return h


@hostile
def inner_gradient(g: Source, r: Random, h: str) -> str:
    w, z = g.matrix(r), g.name("z")
    g.line(f"with torch.enable_grad():\n    {z} = {h}.detach().requires_grad_()\n    ({z},) = torch.autograd.grad(torch.tanh({z} @ {w}).square().sum(), {z}, create_graph={r.choice(['True', 'False'])})")
    return g.let(f"{h} @ {w} + {z}")


@hostile
def transformed(g: Source, r: Random, h: str) -> str:
    w = g.matrix(r)
    return g.let(r.choice([f"torch.func.jvp(lambda z: torch.tanh(z @ {w}), ({h},), (torch.ones_like({h}),))[1]", f"torch.func.grad(lambda z: (z @ {w}).square().sum())({h})", f"torch.func.functional_call({g.module(f'nn.Linear({g.d}, {g.d})')}, dict(weight={w}), ({h},))",
                           f"torch.func.vmap(lambda z: torch.tanh(z @ {w}), in_dims=1, out_dims=1)({h})", f"torch.func.vmap(lambda p: {h} @ p)({g.param(r, 2, g.d, g.d)}).sum(0)"]))


@hostile
def recurrent_layer(g: Source, r: Random, h: str) -> str:
    m = g.module(f"nn.{r.choice(['GRU', 'LSTM', 'RNN'])}({g.d}, {g.d}, batch_first=True)")
    return g.let(f"{m}({h})[0]")


@hostile
def replaced_forward(g: Source, r: Random, h: str) -> str:
    m = g.module(f"nn.Linear({g.d}, {g.d})")
    return g.let(r.choice([f"torch.ops.aten.linear({h}, {m}.weight, {m}.bias)", f"torch._C._nn.linear({h}, {m}.weight)", f"torch.ops.aten.mm({h}.reshape(-1, {g.d}), {m}.weight).view_as({h})", f"torch.ops.aten.add({h}, {m}.bias)", f"torch.ops.aten.mul.Tensor({h}, {m}.bias)"]))


@hostile
def buffers_of_weights(g: Source, r: Random, h: str) -> str:
    p, b = g.param(r, g.d, g.d), g.name("ema")
    g.init.append(f'self.register_buffer("{b}", torch.zeros({g.d}, {g.d}))')
    g.line(f"with torch.no_grad():\n    self.{b}.mul_(0.5).add_(0.5 * {p})")
    return g.let(f"{h} @ {p} + 0.2 * {h} @ self.{b}")
