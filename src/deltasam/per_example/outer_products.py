"""Gradients of a weight matrix, one per group of examples, as outer products that are not multiplied out.

Legend: g groups of examples (a group is one example unless several share a perturbation), R rows (tokens) of a group,
I and O what a layer takes in and gives out. A *side* of an outer product is rows of numbers [g, R, D], or ids [g, R]
that stand for one-hot rows: what an embedding looks up.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltasam.core.torch_internals.modes import checkpoint_region
from deltasam.core.torch_internals.tensors import version_of
from deltasam.core.vectors import HALF_DTYPES, wide

SMALL = 1 << 15


def is_small(numbers: int) -> bool:
    """Whether so many numbers are copied in less time than an operation takes to launch."""
    return numbers <= SMALL


@dataclass(slots=True, eq=False)  # not frozen: one is made in every layer, and that takes four times as long
class OuterProduct:
    """The gradient ``sum_r x_r (outer) b_r`` of a weight matrix, for every group.

    Attributes:
        x: What went into the layer [g, R, I], or the ids that were looked up [g, R].
        b: Gradient of the loss with respect to what came out [g, R, O].
        axis: The axis of the weight that x lies along: 1 for ``F.linear`` [O, I], 0 for a table or ``x @ W`` [I, O].
        ones: A constant 1 is appended to x, so that the gradient of the layer's bias is in this one too.
        factors: Every group's gradient is to be multiplied by its factor [g]; None is 1.
    """

    x: Tensor
    b: Tensor
    axis: int
    ones: bool = False
    factors: Tensor | None = None

    def matrix(self, shape: torch.Size) -> Tensor:
        """The gradient of the weight itself [g, *shape]."""
        x, b = wide(self.x), self._b()
        if x.is_floating_point():
            return (torch.bmm(x.mT, b) if self.axis == 0 else torch.bmm(b.mT, x)).view(len(b), *shape)
        return b.new_zeros(len(b), *shape).scatter_add_(1, x[:, :, None].expand_as(b), b)

    def total(self, shape: torch.Size) -> Tensor:
        """The gradient of the weight, summed over the groups [*shape]."""
        x, b = wide(self.x).flatten(0, 1), self._b().flatten(0, 1)
        if x.is_floating_point():
            return (x.mT @ b if self.axis == 0 else b.mT @ x).view(shape)
        return b.new_zeros(shape).index_add_(0, x, b)

    def biases(self) -> Tensor:
        """The gradient of the layer's bias [g, O]."""
        return self._b().sum(1)

    def bias_total(self) -> Tensor:
        """The gradient of the layer's bias, summed over the groups [O]."""
        return self._b().sum((0, 1))

    def rows_times(self, scale: Tensor) -> OuterProduct:
        """The gradient of a table times a tensor of its shape, element by element: every row by the row it is of."""
        return replace(self, b=self._b() * scale[self.x], factors=None)

    def times(self, factors: Tensor) -> OuterProduct:
        """Each group's gradient times its factor [g]."""
        # In half precision the products alone could leave the range of the type. And a small b is multiplied once, the
        # products several times.
        if self.b.dtype in HALF_DTYPES or self.is_small:
            return OuterProduct(self.x, times(self.b, factors), self.axis, self.ones, self.factors)
        factors = factors.to(self.b)
        # They go into the products, which are smaller than b.
        return replace(self, factors=factors if self.factors is None else self.factors * factors)

    @property
    def is_small(self) -> bool:
        """Whether to launch an operation costs more than what it does with all this."""
        return is_small(self.x.numel() + self.b.numel())

    def without_zero_rows(self) -> OuterProduct:
        """The same gradient from fewer rows, where b is mostly 0: behind a classifier that reads one token, say."""
        if not self.b.numel():
            return self
        dead = self.b[..., 0] == 0
        if 2 * dead.sum() <= dead.numel():  # one column tells whether the whole search can be worth it
            return self
        alive = (self.b != 0).any(-1)
        most = max(int(alive.sum(1).max()), 1)
        if 2 * most > alive.shape[1]:
            return self
        rows = alive.to(torch.int8).topk(most, dim=1).indices
        return replace(self, x=_take(self.x, rows), b=_take(self.b, rows))

    def _b(self) -> Tensor:
        b = wide(self.b)
        return b if self.factors is None else times(b, self.factors)


class GramCache:
    """Products of rows with rows. The last few are kept: layers that share an input (Q, K, V) share them.

    Args:
        wide: Half-precision rows are multiplied in float32.
        keep: How many products are kept.
    """

    def __init__(self, *, wide: bool, keep: int = 4) -> None:
        self._wide, self._keep = wide, keep
        self._kept: OrderedDict[tuple[object, ...], tuple[Any, ...]] = OrderedDict()
        self._one: Tensor | None = None

    def __call__(self, p: Tensor, q: Tensor, *, ones: bool = False, factors: Tensor | None = None) -> Tensor:
        """``p q^T`` [g, P, Q] of two sides, plus 1 where both have a constant 1 appended, times factors [g].

        Args:
            p: A side.
            q: Another.
            ones: Whether a constant 1 is appended to both.
            factors: Of each group [g].
        """
        # The place in the graph as well: a tensor may be detached in place. And gradient checkpointing must find as
        # much to save the second time, so its regions share with no one else.
        node, region = p.grad_fn, checkpoint_region()
        key = (id(p), version_of(p), id(q), id(factors), ones, torch.is_grad_enabled(), id(region), id(node))
        if key not in self._kept:
            product = self._product(*((wide(p), wide(q)) if self._wide else (p, q)), ones=ones)
            if factors is not None:
                product = product * factors[:, None, None]
            # Held, so that nothing else takes their place.
            self._kept[key] = (product, p, q, factors, region, node)
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        kept: Tensor = self._kept[key][0]
        return kept

    def _product(self, p: Tensor, q: Tensor, *, ones: bool) -> Tensor:
        if not ones:
            return _product(p, q)
        if self._one is None or self._one.dtype != p.dtype or self._one.device != p.device:
            self._one = p.new_ones(1, 1, 1)
        return torch.baddbmm(self._one, p, q.mT)


def square_norm(terms: list[OuterProduct], products: GramCache) -> Tensor:
    """Squared norm of the sum of several gradients of one weight [g], cross terms included."""
    squares = []
    for i, p in enumerate(terms):
        for q in terms[i:]:
            ones = p.ones and q.ones
            if p.axis == q.axis:
                both = products(p.x, q.x, ones=ones) * products(p.b, q.b)
            else:
                both = products(p.x, q.b) * products(p.b, q.x)
            square = both.sum((1, 2)) * (1 if q is p else 2)
            for factors in (p.factors, q.factors):
                square = square if factors is None else square * factors
            squares.append(square)
    return functools.reduce(torch.add, squares)


def alike_in_small(term: OuterProduct) -> tuple[object, ...] | None:
    """What must be equal of small gradients for ``square_norms``; None for one that is no such."""
    x, b = term.x, term.b
    if not term.is_small or not x.is_floating_point() or term.factors is not None:
        return None
    return x.shape, b.shape, term.axis, term.ones, x.dtype, b.dtype, b.device


def square_norms(terms: list[OuterProduct]) -> Tensor:
    """The sum of the squared norms of gradients of several weights [g], all of one shape: launched as one."""
    x, b = (wide(torch.cat(sides)) for sides in ([t.x for t in terms], [t.b for t in terms]))
    with_x = _product(x, x)
    products = (with_x + 1 if terms[0].ones else with_x) * _product(b, b)
    return products.view(len(terms), len(terms[0].b), *products.shape[1:]).sum((0, 2, 3))


def contract(onto: Tensor, x: Tensor, axis: int, term: OuterProduct, products: GramCache) -> Tensor:
    """``onto`` [g, R', O] plus new input rows [g, R', I], or ids [g, R'], times the gradient as the weight.

    Args:
        onto: The output so far.
        x: The rows, or ids.
        axis: The axis of the weight that they lie along.
        term: The gradient.
        products: That are kept.
    """
    if term.axis == axis:
        with_x = products(x, term.x, ones=term.ones, factors=term.factors)
        return torch.baddbmm(onto, _like(with_x, onto), _like(term.b, onto))
    with_b = _like(products(x, term.b, factors=term.factors), onto)
    if term.x.is_floating_point():
        return torch.baddbmm(onto, with_b, _like(term.x, onto))
    return onto.scatter_add(2, term.x[:, None, :].expand_as(with_b), with_b)


def times(b: Tensor, factors: Tensor) -> Tensor:
    """What belongs to every group times its factor [g], in b's type."""
    factors = factors.view(-1, *[1] * (b.ndim - 1))
    if b.dtype == factors.dtype and b.device == factors.device:
        return b * factors
    return (wide(b) * factors.to(wide(b))).to(b.dtype)


def _like(x: Tensor, y: Tensor) -> Tensor:
    return x if x.dtype == y.dtype else x.to(y.dtype)


def _product(p: Tensor, q: Tensor) -> Tensor:
    if p.is_floating_point() and q.is_floating_point():
        return torch.bmm(p, q.mT)
    if p.is_floating_point():
        return p.gather(2, q[:, None, :].expand(-1, p.shape[1], -1))
    if q.is_floating_point():
        return q.gather(2, p[:, None, :].expand(-1, q.shape[1], -1)).mT
    return p[:, :, None] == q[:, None, :]


def _take(side: Tensor, rows: Tensor) -> Tensor:
    return side.gather(1, rows if side.ndim == 2 else rows[:, :, None].expand(-1, -1, side.shape[2]))
