"""A forward pass in which every example has weights of its own: ``w + its perturbation``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.per_example import outer
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.outer import Products
from deltasam.per_example.record import NotCoveredError
from deltasam.per_example.rules import Product
from deltasam.per_example.uses import ParameterUses


class Perturbed(ParameterUses):
    """Functions compute as with the weights ``w + perturbation_i`` for every example of group i.

    No weight is moved. Forward and backward belong inside: a layer may be run again in the backward.

    Args:
        model: The model.
        parameters: The parameters that are perturbed, by name.
        perturbations: One per group of consecutive examples.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], perturbations: ExampleGradients) -> None:
        super().__init__(model, parameters)
        self._perturbations = perturbations
        self._products = Products(wide=False)

    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The perturbed parameter for every example [count, *shape]."""
        gradient = self._perturbations.of.get(id(parameter))
        if gradient is None:
            return parameter.expand(count, *parameter.shape)
        step = gradient.matrix(parameter.shape).to(parameter.dtype)
        self._check(count, (parameter,))
        return (parameter + step).repeat_interleave(count // len(step), 0)

    def product(self, run: Callable[[], Tensor], product: Product) -> Tensor:
        """The output with perturbed weights."""
        weight = self._perturbations.of.get(id(product.weight))
        self._check(len(product.x), [p for p in (product.weight, product.bias) if isinstance(p, nn.Parameter)])
        if weight is not None and weight.dense is not None and product.x.is_floating_point():
            return self._multiply(product, weight.dense)
        y = run()
        rows = y.reshape(self._perturbations.groups, -1, y.shape[-1])
        if weight is not None:
            x = product.x.reshape(len(rows), rows.shape[1], *product.x.shape[-1:] * product.x.is_floating_point())
            # A table's rows are looked up in its own precision, also under autocast.
            lookup = nullcontext() if product.x.is_floating_point() else torch.autocast(x.device.type, enabled=False)
            with lookup:
                for term in weight.outers:
                    rows = outer.contract(rows, x, product.axis, term, self._products)
            if weight.dense is not None:
                rows = rows + weight.dense.to(rows.dtype).gather(1, x[:, :, None].expand_as(rows))
        bias = self._perturbations.of.get(id(product.bias))
        if bias is not None and bias.dense is not None:
            rows = rows + bias.dense.to(rows.dtype)[:, None]
        return rows.view(y.shape)

    def refuse(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """A use that the first pass did not have."""
        names = ", ".join(self.names[id(p)] for p in parameters)
        raise NotCoveredError(f"{names}: {reason}, and only in the second pass; a closure must do the same each time")

    def _check(self, count: int, parameters: Iterable[nn.Parameter]) -> None:
        if count % self._perturbations.groups:
            self.refuse(parameters, f"meets {count} rows, which {self._perturbations.groups} examples do not divide")

    def _multiply(self, product: Product, step: Tensor) -> Tensor:
        bias = self._perturbations.of.get(id(product.bias))
        x = product.x.reshape(len(step), -1, product.x.shape[-1])
        y = _MultiplyEach.apply(x, product.weight, step, product.axis)
        if product.bias is not None:
            y = y + (product.bias if bias is None else (product.bias + bias.dense.to(product.bias.dtype))[:, None])
        return y.view(*product.x.shape[:-1], y.shape[-1])


class _MultiplyEach(torch.autograd.Function):
    """``x_i (W + S_i)`` for every group i, or its transpose, without a gradient of W for every group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, step: Tensor, axis: int) -> Tensor:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, step)
        ctx.axis = axis
        moved = (weight + step).to(dtype)
        return torch.bmm(x, moved if axis == 0 else moved.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch._C.DisableTorchFunction():  # what is computed here is not a use of the weight
            return _MultiplyEach._gradients(ctx, gradients[0])

    @staticmethod
    def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, step = ctx.saved_tensors
        moved = (weight + step).to(dy.dtype)
        dx = torch.bmm(dy, moved.mT if ctx.axis == 0 else moved) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            left, right = (x, dy) if ctx.axis == 0 else (dy, x)
            dw = (left.flatten(0, 1).mT @ right.flatten(0, 1)).to(weight.dtype)
        return dx, dw, None, None
