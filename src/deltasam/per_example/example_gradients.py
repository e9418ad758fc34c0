"""The gradient of every example, of all parameters: norms and sums of it, without the gradients themselves."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.torch_internals import foreach
from deltasam.core.vectors import wide
from deltasam.per_example.outer_products import GramCache, OuterProduct, alike_in_small, is_small, square_norms
from deltasam.per_example.parameter_gradient import ParameterGradient, gradient_of
from deltasam.per_example.recorder import Use
from deltasam.per_example.rules import Affine, MatmulUse, PaddedLookup
from deltasam.per_example.small import SmallGradients


class ExampleGradients:
    """One gradient per group of examples, kept as what the layers saw.

    Args:
        uses: Of every parameter, in a forward pass.
        gradients: With respect to the output of each use; None for one that the loss does not depend on.
        groups: How many groups of consecutive examples there are; a group's gradient is the sum of its examples'.
        thin: The numbers of uses that are expected to have mostly rows of gradient 0, which are left out; None: all
            are looked at, for which the device is waited for.
        apart: Parameters, by id, that were used outside of the graph as well: they need a gradient of their own.

    Attributes:
        groups: As above.
        thin: The numbers of those that had, among those that were looked at.
        of: The gradient of each parameter, by id.
    """

    def __init__(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Tensor | None],
        groups: int,
        thin: Collection[int] | None = None,
        *,
        apart: Collection[int] = (),
    ) -> None:
        self.groups, self.thin = groups, set[int]()
        self._expected = thin
        self._unit: Tensor | None = None
        self._finite: bool | None = None
        self._rows: dict[int, Tensor] = {}
        there = [(number, use, b) for number, (use, b) in enumerate(zip(uses, gradients, strict=True)) if b is not None]
        counts = Counter(id(p) for _, use, _ in there for p in use.parameters)
        small = SmallGradients(groups)
        others: dict[int, tuple[nn.Parameter, list[tuple[int, Use, Tensor]]]] = {}
        for number, use, b in there:
            product, parameters = use.product, use.parameters
            if product and small.fit(product, parameters) and all(counts[id(p)] == 1 for p in parameters):
                small.take(product, parameters, self._input_rows(product), product.output_rows(b, groups))
            else:
                for p in parameters:
                    others.setdefault(id(p), (p, []))[1].append((number, use, b))
        # Of all uses: a bias that is fused with its weight must move wherever it is used, also without a gradient.
        self._weights = {
            b: w
            for b, w in _weights_by_bias(uses).items()
            if w in others and b not in apart and not is_small(groups * others[w][0].numel())
        }
        self._fused_weights = set(self._weights.values())
        self.of = {id(p): ParameterGradient(dense=dense, multiplies=p.ndim > 1) for p, dense in small.formed()}
        for parameter, its_uses in others.values():  # weights come before their biases
            if not self._is_fused(parameter):
                outers, denses = self._contributions(parameter, its_uses)
                self.of[id(parameter)] = gradient_of(parameter, outers, denses, groups)
        self._rows.clear()

    def norms(self) -> Tensor:
        """Norm of each group's gradient over all parameters [g], in float32 or wider."""
        if not self.of:
            return torch.zeros(self.groups)
        norms = _norms(self.of.values())
        if self._unit is not None:
            return norms * self._unit
        most = float(norms.max())
        self._finite = math.isfinite(most)
        if self._finite and (most > vectors.TINY or not norms.numel()):
            return norms
        # With a large loss scale squares may be infinite where gradients are not, and 0 with a small one: go on in
        # another unit.
        parts = [part for gradient in self.of.values() for part in gradient.parts if part.numel()]
        largest = torch.stack([wide(part).abs().max().to(norms.device) for part in parts]).max()
        if not largest.isfinite() or not largest:
            return norms
        self.of, self._unit = {key: gradient.divided(largest) for key, gradient in self.of.items()}, largest
        return _norms(self.of.values()) * largest

    def scale(self, factors: Tensor, *, in_place: bool = True) -> None:
        """Multiply each group's gradient by its factor [g]; a factor of 0 makes 0 of any gradient, also of NaN.

        Args:
            factors: One for each group.
            in_place: Plain tensors are changed; else new ones are made.
        """
        if not self._finite:  # else 0 times it is 0
            dropped = factors == 0
            self.of = {key: gradient.without(dropped) for key, gradient in self.of.items()}
        if self._unit is not None:
            factors, self._unit = factors * self._unit, None
        self.times(factors, in_place=in_place)

    def scaled(self, factors: Tensor) -> ExampleGradients:
        """A copy, with each group's gradient multiplied by its factor [g]; a factor of 0 makes 0 of any gradient."""
        other = copy.copy(self)
        other.scale(factors, in_place=False)
        return other

    def zeros(self) -> list[int]:
        """The parameters, by id, whose gradient is 0 in every group."""
        parts = [(key, part) for key, gradient in self.of.items() for part in gradient.parts if part.numel()]
        if not parts:
            return list(self.of)
        largest = foreach.norm([part for _, part in parts], math.inf)
        sizes = torch.stack([size.to(largest[0].device, torch.float32) for size in largest]).tolist()
        moving = {key for (key, _), size in zip(parts, sizes, strict=True) if size}
        return [key for key in self.of if key not in moving]

    def stir(self, parameters: Iterable[int], factors: Tensor) -> None:
        """Give some parameters, by id, a random gradient, of norm ``factors`` [g], for a look."""
        generator = torch.Generator("cpu").manual_seed(0)
        for key in parameters:
            random = self.of[key].random(generator)
            norms = _norms([random])
            self.of[key] = random.times(torch.where(norms > 0, factors / norms, 0.0))

    def times(self, factors: Tensor, *, in_place: bool = True) -> None:
        """Multiply each group's gradient by its factor [g], through which derivatives may be taken.

        Args:
            factors: One for each group.
            in_place: Plain tensors are changed, unless derivatives are taken; else new ones are made.
        """
        of = self.of = self.of if in_place else dict(self.of)
        denses = {key: gradient.dense for key, gradient in of.items() if gradient.dense is not None}
        if denses:
            kinds = {(d.ndim, d.device, d.dtype): d for d in denses.values()}
            for_each = {kind: factors.to(d).view(-1, *[1] * (d.ndim - 1)) for kind, d in kinds.items()}
            multiply = foreach.mul_ if in_place and not factors.requires_grad else foreach.mul
            products = multiply(list(denses.values()), [for_each[d.ndim, d.device, d.dtype] for d in denses.values()])
            denses = dict(zip(denses, products or denses.values(), strict=True))
        for key in of:  # one after the other: what each was is free before the next is made
            of[key] = replace(of[key], dense=denses[key]) if key in denses else of[key].times(factors)

    def multiply(self, scales: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        """Multiply every group's gradient of a parameter by a tensor [*shape], element by element.

        A product of numbers (a linear layer's weight) then has its gradients formed, one per group.
        """
        for bias, weight in self._weights.items():
            if weight in self.of and self.of[weight].holds_bias:
                self.of[weight], self.of[bias] = self.of[weight].parted()
        for parameter, scale in scales:
            if id(parameter) in self.of:
                self.of[id(parameter)] = self.of[id(parameter)].multiplied(scale)

    def totals(self, parameters: Iterable[nn.Parameter]) -> Iterator[Tensor | None]:
        """The gradients summed over the groups, one parameter after the other; None where one was not used."""
        return (t if t is None or self._unit is None else t * self._unit for t in map(self._total, parameters))

    def _total(self, parameter: nn.Parameter) -> Tensor | None:
        if id(parameter) in self.of:
            return self.of[id(parameter)].total(parameter.shape)
        weight = self._weights.get(id(parameter))
        return self.of[weight].bias_total() if weight is not None else None

    def _is_fused(self, parameter: nn.Parameter) -> bool:
        weight = self._weights.get(id(parameter))
        return weight is not None and self.of[weight].holds_bias

    def _contributions(
        self, parameter: nn.Parameter, uses: Sequence[tuple[int, Use, Tensor]]
    ) -> tuple[list[OuterProduct], list[Tensor]]:
        """What every use of a parameter adds to its gradient: outer products, and tensors [g, *shape]."""
        outers: list[OuterProduct] = []
        denses: list[Tensor] = []
        for number, use, b in uses:
            if use.product is None:
                denses.append(wide(b).reshape(self.groups, len(b) // self.groups, *parameter.shape).sum(1))
            elif isinstance(use.product, Affine):
                denses.append(use.product.gradient(parameter, b, self.groups))
            elif use.product.weight is parameter:
                outers.append(self._outer(number, use.product, b, ones=id(parameter) in self._fused_weights))
            else:
                denses.append(use.product.output_rows(wide(b), self.groups).sum(1))
        return outers, denses

    def _outer(self, number: int, product: MatmulUse, b: Tensor, *, ones: bool) -> OuterProduct:
        x, b = self._input_rows(product), product.output_rows(b, self.groups)
        if isinstance(product, PaddedLookup):
            b = b * (x != product.ignored)[:, :, None]
        term = OuterProduct(x, b, product.axis, ones)
        unexpected = self._expected is not None and number not in self._expected
        if unexpected or not x.is_floating_point() or is_small(self.groups * product.weight.numel()):
            return term
        less = term.without_zero_rows()
        if less is not term:
            self.thin.add(number)
        return less

    def _input_rows(self, product: MatmulUse | Affine) -> Tensor:
        """Of the product; the same tensor again for the same input, so that layers which share one share products."""
        if type(product) not in (MatmulUse, Affine):
            return product.input_rows(self.groups).detach()
        x = product.x
        if id(x) not in self._rows:  # what has gone into a product is not written into until the backward has run
            self._rows[id(x)] = product.input_rows(self.groups).detach()
        return self._rows[id(x)]


def _norms(gradients: Iterable[ParameterGradient]) -> Tensor:
    products, squares = GramCache(wide=True), []
    small: dict[torch.device, list[Tensor]] = {}
    alike: dict[tuple[object, ...], list[OuterProduct]] = {}
    for gradient in gradients:
        dense = gradient.dense
        if dense is not None and is_small(dense.numel()):
            small.setdefault(dense.device, []).append(dense.flatten(1) if dense.ndim > 1 else dense[:, None])
        elif len(gradient.outers) == 1 and (key := alike_in_small(gradient.outers[0])):
            alike.setdefault(key, []).append(gradient.outers[0])
        else:
            squares.append(gradient.square_norm(products))
    squares += [square_norms(terms) for terms in alike.values()]
    squares += [torch.cat(rows, 1).square().sum(1) for rows in small.values()]
    device = squares[0].device
    return torch.stack([square.to(device) for square in squares]).sum(0).clamp(min=0).sqrt()


def _weights_by_bias(uses: Sequence[Use]) -> dict[int, int]:
    """Biases that are only ever used together with one weight that is only ever used with them, by id."""
    partners: dict[int, set[int | None]] = {}
    biases = set[int]()
    for use in uses:
        product, parameters = use.product, use.parameters
        if isinstance(product, MatmulUse) and product.bias is not None:
            biases.add(id(product.bias))
        if isinstance(product, MatmulUse) and len(parameters) == 2:
            weight, bias = map(id, parameters)
            partners.setdefault(weight, set()).add(bias)
            partners.setdefault(bias, set()).add(weight)
        else:
            for p in parameters:
                partners.setdefault(id(p), set()).add(None)
    return {
        bias: weight
        for bias, weights in partners.items()
        if bias in biases and len(weights) == 1
        for weight in weights
        if weight is not None and partners[weight] == {bias}
    }
