"""The gradient of every example, of all parameters: norms and sums of it, without the gradients themselves."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deltasam.per_example.gradient import ParameterGradient, gradient_of
from deltasam.per_example.outer import Outer, Products
from deltasam.per_example.record import Use
from deltasam.per_example.rules import PaddedLookup, Product
from deltasam.weight_space import wide

# Gradients of so few numbers are put together for their norm: what that copies costs less than to launch one each.
_SMALL = 1 << 12


class ExampleGradients:
    """One gradient per group of examples, kept as what the layers saw.

    Args:
        uses: Of every parameter, in a forward pass.
        gradients: With respect to the output of each use; None for one that the loss does not depend on.
        groups: How many groups of consecutive examples there are; a group's gradient is the sum of its examples'.
        thin: The numbers of uses that are expected to have mostly rows of gradient 0, which are left out; None: all
            are looked at, for which the device is waited for.

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
    ) -> None:
        self.groups, self.thin = groups, set[int]()
        self._expected = thin
        self._unit: Tensor | None = None
        of_each: dict[int, tuple[nn.Parameter, list[tuple[int, Use, Tensor]]]] = {}
        for number, (use, b) in enumerate(zip(uses, gradients, strict=True)):
            if b is not None:
                for p in use.parameters:
                    of_each.setdefault(id(p), (p, []))[1].append((number, use, b))
        # Of all uses: a bias that is fused with its weight must move wherever it is used, also without a gradient.
        self._weights = {b: w for b, w in _weights_by_bias(uses).items() if w in of_each}
        self._fused_weights = set(self._weights.values())
        self.of: dict[int, ParameterGradient] = {}
        for parameter, its_uses in of_each.values():  # weights come before their biases
            if not self._is_fused(parameter):
                self.of[id(parameter)] = self._gradient_of(parameter, its_uses)

    def norms(self) -> Tensor:
        """Norm of each group's gradient over all parameters [g], in float32 or wider."""
        if not self.of:
            return torch.zeros(self.groups)
        norms = _norms(self.of.values())
        if self._unit is not None:
            return norms * self._unit
        if norms.isfinite().all():
            return norms
        # With a large loss scale squares may be infinite where gradients are not: go on in a larger unit.
        largest = torch.stack([gradient.largest() for gradient in self.of.values()]).max()
        if not largest.isfinite():
            return norms
        self.of, self._unit = {key: gradient.divided(largest) for key, gradient in self.of.items()}, largest
        return _norms(self.of.values()) * largest

    def scale(self, factors: Tensor) -> None:
        """Multiply each group's gradient by its factor [g]; a factor of 0 makes 0 of any gradient, also of NaN."""
        dropped = factors == 0
        if self._unit is not None:
            factors, self._unit = factors * self._unit, None
        if dropped.any():
            self.of = {key: gradient.without(dropped) for key, gradient in self.of.items()}
        self.times(factors)

    def scaled(self, factors: Tensor) -> ExampleGradients:
        """A copy, with each group's gradient multiplied by its factor [g]; a factor of 0 makes 0 of any gradient."""
        other = copy.copy(self)
        other.of = {key: gradient.apart() for key, gradient in self.of.items()}
        other.scale(factors)
        return other

    def zeros(self) -> list[int]:
        """The parameters, by id, whose gradient is 0 in every group."""
        if not self.of:
            return []
        largest = torch.stack([gradient.largest() for gradient in self.of.values()]).tolist()
        return [key for key, size in zip(self.of, largest, strict=True) if not size]

    def stir(self, parameters: Iterable[int], factors: Tensor) -> None:
        """Give some parameters, by id, a random gradient, of norm ``factors`` [g], for a look."""
        generator = torch.Generator("cpu").manual_seed(0)
        for key in parameters:
            random = self.of[key].random(generator)
            norms = _norms([random])
            self.of[key] = random.times(torch.where(norms > 0, factors / norms, 0.0))

    def times(self, factors: Tensor) -> None:
        """Multiply each group's gradient by its factor [g], through which derivatives may be taken."""
        self.of = {key: gradient.times(factors) for key, gradient in self.of.items()}

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

    def _gradient_of(self, parameter: nn.Parameter, uses: Sequence[tuple[int, Use, Tensor]]) -> ParameterGradient:
        outers: list[Outer] = []
        denses: list[Tensor] = []
        for number, use, b in uses:
            if use.product is None:
                denses.append(wide(b).reshape(self.groups, len(b) // self.groups, *parameter.shape).sum(1))
            elif use.product.weight is parameter:
                outers.append(self._outer(number, use.product, b))
            else:
                denses.append(use.product.output_rows(wide(b), self.groups).sum(1))
        gradient = gradient_of(parameter, outers, denses)
        if id(parameter) in self._fused_weights:
            return replace(gradient, outers=tuple(replace(term, ones=True) for term in gradient.outers))
        return gradient

    def _outer(self, number: int, product: Product, b: Tensor) -> Outer:
        x, b = product.input_rows(self.groups).detach(), product.output_rows(b, self.groups)
        if isinstance(product, PaddedLookup):
            b = b * (x != product.ignored)[:, :, None]
        term = Outer(x, b, product.axis)
        if not x.is_floating_point() or (self._expected is not None and number not in self._expected):
            return term
        less = term.without_zero_rows()
        if less is not term:
            self.thin.add(number)
        return less


def _norms(gradients: Iterable[ParameterGradient]) -> Tensor:
    products, small, squares = Products(wide=True), [], []
    for gradient in gradients:
        dense = gradient.dense
        if dense is not None and dense[0].numel() <= _SMALL:
            small.append(dense.flatten(1) if dense.ndim > 1 else dense[:, None])
        else:
            squares.append(gradient.square_norm(products))
    if small:
        squares.append(torch.cat(small, 1).square().sum(1))
    return torch.stack(squares).sum(0).clamp(min=0).sqrt()


def _weights_by_bias(uses: Sequence[Use]) -> dict[int, int]:
    """Biases that are only ever used together with one weight that is only ever used with them, by id."""
    partners: dict[int, set[int | None]] = {}
    for use in uses:
        weight, bias = (use.product.weight, use.product.bias) if use.product else (None, None)
        for p in use.parameters:
            other = bias if p is weight else weight if p is bias else None
            trained = other is not None and any(other is q for q in use.parameters)
            partners.setdefault(id(p), set()).add(id(other) if trained else None)
    biases = {id(u.product.bias) for u in uses if u.product and u.product.bias is not None}
    return {
        bias: weight
        for bias, weights in partners.items()
        if bias in biases and len(weights) == 1
        for weight in weights
        if weight is not None and partners[weight] == {bias}
    }
