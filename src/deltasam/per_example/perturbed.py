"""A forward pass in which every example has weights of its own: ``w + its perturbation``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.per_example import outer
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.functions import Function
from deltasam.per_example.gradient import ParameterGradient
from deltasam.per_example.outer import Products
from deltasam.per_example.record import NotCoveredError, Record
from deltasam.per_example.row_moves import RowMoves
from deltasam.per_example.rules import Product
from deltasam.per_example.uses import ParameterUses


class Perturbed(ParameterUses):
    """Functions compute as with the weights ``w + perturbation_i`` for every example of group i.

    No weight is moved. Forward and backward belong inside: a layer may be run again in the backward.

    Args:
        record: Of the first pass: the model, and the parameters that are perturbed.
        perturbations: One per group of consecutive examples.
    """

    def __init__(self, record: Record, perturbations: ExampleGradients) -> None:
        super().__init__(record.structure, record.parameters)
        self._record = record
        self._perturbations, self._groups = perturbations, perturbations.groups
        self._moved = {
            id(p): gradient.dense.add_(p.detach())  # no memory beside the gradients is taken
            for p in record.parameters.values()
            if (gradient := self._of(p)) is not None and gradient.dense is not None and gradient.multiplies
            if p.untyped_storage().size()  # weights that are sharded are not here outside of the passes
        }
        self._products = Products(wide=False)
        self._moves, self._uses = RowMoves(), 0

    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The perturbed parameter for every example [count, *shape]."""
        self._uses += 1
        gradient = self._perturbations.of.get(id(parameter))
        if gradient is None:
            return parameter.expand(count, *parameter.shape)
        self._check(count, (parameter,))
        if id(parameter) in self._moved:
            perturbed = self._moved[id(parameter)] + (parameter - parameter.detach())  # 0, and a way for the gradient
        else:
            perturbed = parameter + gradient.matrix(parameter.shape).to(parameter.dtype)
        return perturbed if count == self._groups else perturbed.repeat_interleave(count // self._groups, 0)

    def product(self, run: Callable[[], Tensor], product: Product) -> Tensor:
        """The output with perturbed weights."""
        self._uses += 1
        self._check(len(product.x), [p for p in (product.weight, product.bias) if isinstance(p, nn.Parameter)])
        if id(product.weight) in self._moved and not _in_low_precision(product.x):
            return self._multiply(product, self._moved[id(product.weight)])
        y = run()
        rows = product.output_rows(y, self._groups)
        if (weight := self._of(product.weight)) is not None:
            rows = self._add_product(rows, product, weight)
        if (bias := self._of(product.bias)) is not None and bias.dense is not None:
            rows = rows + bias.dense.to(rows.dtype)[:, None]
        return product.output(rows)

    def _add_product(self, rows: Tensor, product: Product, weight: ParameterGradient) -> Tensor:
        x = product.input_rows(self._groups)
        if x.is_floating_point() and weight.dense is not None:
            step = (weight.dense - product.weight.detach()) if id(product.weight) in self._moved else weight.dense
            step = _matrices(step)
            return torch.baddbmm(rows, x, (step if product.axis == 0 else step.mT).to(rows.dtype))
        if weight.dense is not None:
            return rows + weight.dense.to(rows.dtype).gather(1, x[:, :, None].expand_as(rows))
        # A table's rows are looked up in its own precision, also under autocast.
        with nullcontext() if x.is_floating_point() else torch.autocast(x.device.type, enabled=False):
            for term in weight.outers:
                rows = outer.contract(rows, x, product.axis, term, self._products, product.x)
        return rows

    def _multiply(self, product: Product, moved: Tensor) -> Tensor:
        bias = None if product.bias is None else product.bias.expand(1, 1, -1)
        if bias is not None and (step := self._of(product.bias)) is not None and step.dense is not None:
            bias = bias + step.dense[:, None]
        x = product.input_rows(self._groups)
        return product.output(_MultiplyEach.apply(x, product.weight, _matrices(moved), bias, product.axis))

    def moved(self, function: Function, args: Any, kwargs: Any, result: Any) -> None:
        """Note whose rows were picked."""
        self._moves.see(function.name, args, kwargs, result, self._uses)

    def check_rows(self) -> None:
        """To be called after the forward.

        Raises:
            NotCoveredError: Rows were picked otherwise than in the first pass: a use had those of other examples.
        """
        if self._moves.summary(self._groups, self._uses) != self._record.row_moves(self._groups):
            raise NotCoveredError(
                "  the model: which rows it picks, or in which order it puts them, changes when weights are moved: by "
                "values that depend on the weights (a sort, a routing), or by chance"
            )

    def refuse(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """A use that the first pass did not have."""
        names = ", ".join(self.names[id(p)] for p in parameters)
        raise NotCoveredError(f"{names}: {reason}, and only in the second pass; a closure must do the same each time")

    spoil = refuse

    def _check(self, count: int, parameters: Iterable[nn.Parameter]) -> None:
        if count % self._groups:
            self.refuse(parameters, f"meets {count} rows, which {self._groups} groups of examples do not divide")

    def _of(self, parameter: Tensor | None) -> ParameterGradient | None:
        return self._perturbations.of.get(id(parameter))


class _MultiplyEach(torch.autograd.Function):
    """``x_i M_i + bias`` for every group i, M_i = W + S_i or its transpose; the gradient of W is the sum over all i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, moved: Tensor, bias: Tensor | None, axis: int) -> Tensor:
        ctx.save_for_backward(x, moved)
        ctx.axis, ctx.shape, ctx.bias_groups = axis, weight.shape, None if bias is None else len(bias)
        m = moved if axis == 0 else moved.mT
        return torch.bmm(x, m) if bias is None else torch.baddbmm(bias, x, m)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, moved = ctx.saved_tensors  # with gradient checkpointing the forward runs again in here
        with torch._C.DisableTorchFunction():  # what is computed here is not a use of the weight
            return _MultiplyEach._gradients(ctx, x, moved, gradients[0])

    @staticmethod
    def _gradients(ctx: Any, x: Tensor, moved: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = dw = dm = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.bmm(dy, moved.mT if ctx.axis == 0 else moved)
        if ctx.needs_input_grad[1]:
            left, right = (x, dy) if ctx.axis == 0 else (dy, x)
            dw = (left.flatten(0, 1).mT @ right.flatten(0, 1)).view(ctx.shape)
        if ctx.needs_input_grad[2]:  # a perturbation that itself depends on something
            dm = (torch.bmm(x.mT, dy) if ctx.axis == 0 else torch.bmm(dy.mT, x)).view(moved.shape)
        if ctx.needs_input_grad[3]:
            db = dy.sum((0, 1), keepdim=True) if ctx.bias_groups == 1 else dy.sum(1, keepdim=True)
        return dx, dw, dm, db, None


def _matrices(weights: Tensor) -> Tensor:
    """One weight per group, of any number of axes, as a matrix each [g, rows, columns]."""
    return weights.flatten(2)


def _in_low_precision(x: Tensor) -> bool:
    """Whether a product with x is rounded so much that weights moved a little are weights not moved."""
    return torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64)
