"""The gradient of one parameter for every group of examples, however many times the parameter was used."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deltasam.core.vectors import HALF_DTYPES, wide
from deltasam.per_example import outer_products as outer
from deltasam.per_example.outer_products import GramCache, OuterProduct, is_small

# What forming a gradient of every group costs beside its matrix product, in rows of that product: memory traffic.
_TRAFFIC = 40
# With so many uses they stay apart: then layers with one input share products. But each is multiplied with each.
_FEW = 4


@dataclass(slots=True, eq=False)
class ParameterGradient:
    """One gradient of a parameter per group of examples: as outer products, or as a plain tensor.

    Attributes:
        outers: OuterProduct products whose sum it is; or
        dense: The gradients themselves [g, *shape].
        multiplies: Whether all that the parameter does is multiply numbers, as a linear layer's weight.
    """

    outers: tuple[OuterProduct, ...] = ()
    dense: Tensor | None = None
    multiplies: bool = False

    @property
    def holds_bias(self) -> bool:
        """Whether the gradient of the layer's bias is in this one as well."""
        return any(term.ones for term in self.outers)

    def square_norm(self, products: GramCache) -> Tensor:
        """Squared norm of each group's gradient [g]."""
        if self.dense is None:
            return outer.square_norm(list(self.outers), products)
        return self.dense.reshape(len(self.dense), self.dense[0].numel()).square().sum(1)

    @property
    def parts(self) -> list[Tensor]:
        """The gradient itself, or the output gradients that it is made of: 0 where it is 0."""
        return [term.b for term in self.outers] if self.dense is None else [self.dense]

    def random(self, generator: torch.Generator) -> ParameterGradient:
        """A random one of the same form.

        Args:
            generator: On the CPU.
        """
        if self.dense is not None:
            return replace(self, dense=_noise(self.dense, generator))
        return replace(self, outers=tuple(replace(t, b=_noise(t.b, generator), factors=None) for t in self.outers))

    def divided(self, number: Tensor) -> ParameterGradient:
        """The same divided by a number []."""
        if self.dense is None:
            return replace(self, outers=tuple(replace(term, b=wide(term.b) / number) for term in self.outers))
        return replace(self, dense=self.dense / number)

    def times(self, factors: Tensor) -> ParameterGradient:
        """Each group's gradient times its factor [g]; a plain tensor is changed in place."""
        if self.dense is None:
            return replace(self, outers=tuple(term.times(factors) for term in self.outers))
        return replace(self, dense=self.dense.mul_(factors.view(-1, *[1] * (self.dense.ndim - 1))))

    def multiplied(self, scale: Tensor) -> ParameterGradient:
        """Each group's gradient times a tensor [*shape], element by element; a plain tensor is changed in place."""
        if self.dense is not None:
            return replace(self, dense=self.dense.mul_(scale))
        if all(not term.x.is_floating_point() for term in self.outers):  # rows of a table stay rows of it
            return replace(self, outers=tuple(term.rows_times(scale) for term in self.outers))
        return replace(self, outers=(), dense=self.matrix(scale.shape).mul_(scale))

    def parted(self) -> tuple[ParameterGradient, ParameterGradient]:
        """The gradient of the weight alone, and that of the layer's bias, which it holds."""
        alone = replace(self, outers=tuple(replace(term, ones=False) for term in self.outers))
        return alone, ParameterGradient(dense=_sum(term.biases() for term in self.outers))

    def without(self, dropped: Tensor) -> ParameterGradient:
        """No gradient for some groups [g], whatever it was."""
        outers = tuple(replace(t, b=t.b.masked_fill(dropped[:, None, None], 0)) for t in self.outers)
        if self.dense is None:
            return replace(self, outers=outers)
        return replace(self, dense=self.dense.masked_fill(dropped.view(-1, *[1] * (self.dense.ndim - 1)), 0))

    def matrix(self, shape: torch.Size) -> Tensor:
        """The gradient of the parameter [g, *shape]."""
        if self.dense is not None:
            return self.dense
        return _sum(term.matrix(shape) for term in self.outers)

    def total(self, shape: torch.Size) -> Tensor:
        """The gradient summed over the groups [*shape]."""
        if self.dense is not None:
            return self.dense.sum(0)
        return _sum(term.total(shape) for term in self.outers)

    def bias_total(self) -> Tensor:
        """The gradient of the layer's bias, summed over the groups [O]."""
        return _sum(term.bias_total() for term in self.outers)


def gradient_of(
    parameter: nn.Parameter, outers: list[OuterProduct], denses: list[Tensor], groups: int
) -> ParameterGradient:
    """The sum of what every use of a parameter contributed, in the form that costs least.

    Args:
        parameter: The parameter.
        outers: Contributions as outer products.
        denses: Contributions as tensors [g, *shape].
        groups: g.
    """
    outers = _merged(outers)
    multiplies = not denses and all(term.x.is_floating_point() for term in outers)
    small = (
        is_small(groups * parameter.numel()) and multiplies
    )  # a lookup takes more operations with a table for each group
    if not denses and not small and _outer_products_are_cheaper(outers, parameter.shape):
        return ParameterGradient(tuple(outers), multiplies=multiplies)
    matrices = (term.matrix(parameter.shape) for term in outers)
    return ParameterGradient(dense=_sum([*matrices, *denses]), multiplies=multiplies)


def _merged(outers: list[OuterProduct]) -> list[OuterProduct]:
    """The same sum with few terms: a weight that is used in every step of a loop has one with all rows."""
    if len(outers) <= _FEW:
        return outers
    alike: dict[tuple[object, ...], list[OuterProduct]] = {}
    for term in outers:
        alike.setdefault((term.axis, term.ones, term.x.dtype, term.b.dtype), []).append(term)
    return [
        replace(terms[0], x=torch.cat([t.x for t in terms], 1), b=torch.cat([t.b for t in terms], 1))
        for terms in alike.values()
    ]


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device="cpu").to(like)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


def _outer_products_are_cheaper(terms: list[OuterProduct], shape: torch.Size) -> bool:
    """Three products of rows with rows (norm, forward, backward) against one matrix for every group.

    In half precision the matrix takes part in as many: there it stands beside the weight, whose product is not left
    out. It is also formed only where it does not take more memory, in float32 at least, than twice the rows.
    """
    rows = sum(term.b.shape[1] for term in terms)
    table = all(not term.x.is_floating_point() for term in terms)
    columns = shape[1:].numel()
    weights, sides = shape.numel(), columns if table else shape[0] + columns
    of_matrix = 3 if terms[0].b.dtype in HALF_DTYPES else 1
    by_matrix = of_matrix * rows * (columns if table else weights) + _TRAFFIC * weights
    size, size_of_matrix = terms[0].b.itemsize, wide(terms[0].b[:0]).itemsize
    return 3 * rows * rows * sides <= by_matrix or weights * size_of_matrix > 2 * rows * sides * size
