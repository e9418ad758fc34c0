"""A forward pass in which every example has weights of its own: ``w + its perturbation``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core.passes import Passes, PerturbedPass
from deltasam.core.torch_internals import foreach
from deltasam.core.torch_internals.modes import unseen
from deltasam.core.torch_internals.tensors import version_of
from deltasam.per_example import outer_products as outer
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.functions import Args, Function, Kwargs
from deltasam.per_example.outer_products import GramCache, is_small
from deltasam.per_example.parameter_gradient import ParameterGradient
from deltasam.per_example.recorder import NotCoveredError, Record
from deltasam.per_example.row_moves import RowMoves
from deltasam.per_example.rules import Affine, MatmulUse, is_parameter
from deltasam.per_example.tracing import ParameterTracer


class Perturbed(ParameterTracer):
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
        self._small = {} if record.structure.sharded else self._perturb_small()
        self._moved = {
            id(p): gradient.dense.add_(p.detach())  # no memory beside the gradients is taken
            for p in record.parameters.values()
            if (gradient := self._of(p)) is not None and gradient.dense is not None and gradient.multiplies
            if id(p) not in self._small and p.untyped_storage().size()  # sharded ones are not here outside of passes
        }
        self._versions = {id(t): version_of(t.x) for g in perturbations.of.values() for t in g.outers}
        self._products = GramCache(wide=False)
        self._moves, self._uses = RowMoves(), 0
        self._last: tuple[tuple[object, ...], Tensor] = ((), torch.empty(0))

    def _perturb_small(self) -> dict[int, Tensor]:
        """Small parameters for every group [g, *shape], by id; vectors have an axis for rows between [g, 1, D].

        With these a layer is one product, where two forms of it would be two, with others between them.
        """
        steps = {}
        for p in self._record.parameters.values():
            gradient = self._of(p)
            dense = None if gradient is None else gradient.dense
            if dense is not None and is_small(dense.numel()):
                step = dense if p.ndim > 1 else dense[:, None]
                steps[id(p)] = p, step if step.dtype == p.dtype else step.to(p.dtype)
        if not steps:
            return {}
        return dict(zip(steps, foreach.add(*map(list, zip(*steps.values(), strict=True))), strict=True))

    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The perturbed parameter for every example [count, *shape]."""
        self._uses += 1
        gradient = self._perturbations.of.get(id(parameter))
        if gradient is None:
            return parameter.expand(count, *parameter.shape)
        if count % self._groups:
            self._refuse_rows(count, (parameter,))
        if id(parameter) in self._small:
            perturbed = self._small[id(parameter)].view(self._groups, *parameter.shape)
        elif id(parameter) in self._moved:
            perturbed = self._moved[id(parameter)] + (parameter - parameter.detach())  # 0, and a way for the gradient
        else:
            perturbed = parameter + gradient.matrix(parameter.shape).to(parameter.dtype)
        return perturbed if count == self._groups else perturbed.repeat_interleave(count // self._groups, 0)

    def product(self, run: Callable[[], Tensor], product: MatmulUse) -> Tensor:
        """The output with perturbed weights."""
        self._uses += 1
        if len(product.x) % self._groups:
            self._refuse_rows(len(product.x), product.parameters)
        if self._is_small(product) and not _in_low_precision(product.x):
            return self._multiply_small(product)
        if id(product.weight) in self._moved and not _in_low_precision(product.x):
            return self._multiply(product, self._moved[id(product.weight)])
        y = run()
        rows = product.output_rows(y, self._groups)
        if (weight := self._of(product.weight)) is not None:
            rows = self._add_product(rows, product, weight)
        if (bias := self._of(product.bias)) is not None and bias.dense is not None:
            rows = rows + bias.dense.to(rows.dtype)[:, None]
        return rows if rows.shape == y.shape else product.output(rows)

    def affine(self, affine: Affine) -> Tensor:
        """The output with perturbed weights."""
        plain = affine.run(affine.x, None, None)
        weight, bias = (self._beside(t, plain) for t in (affine.weight, affine.bias))
        if weight is not None and bias is not None:
            y = torch.addcmul(bias, plain, weight)
        else:
            y = plain if weight is None else plain * weight
            y = y if bias is None else y + bias
        return y if y.dtype == plain.dtype else y.to(plain.dtype)

    def _beside(self, side: Tensor | None, output: Tensor) -> Tensor | None:
        """A weight or bias with as many axes as an output [B, ...]; if it is perturbed, for every example its own."""
        if side is None or not is_parameter(side) or id(side) not in self.names:
            return side
        if output.ndim == 3 and side.ndim == 1 and id(side) in self._small and len(output) == self._groups:
            self._uses += 1
            return self._small[id(side)]
        copies = self.copies(side, len(output))
        axes = output.ndim - copies.ndim
        return copies.view(len(copies), *[1] * axes, *side.shape) if axes else copies

    def _add_product(self, rows: Tensor, product: MatmulUse, weight: ParameterGradient) -> Tensor:
        x = self._input_rows(product)
        if weight.dense is not None:
            step = (weight.dense - product.weight.detach()) if id(product.weight) in self._moved else weight.dense
            if not x.is_floating_point():
                return rows + step.to(rows.dtype).gather(1, x[:, :, None].expand_as(rows))
            step = _matrices(step)
            return torch.baddbmm(rows, x, (step if product.axis == 0 else step.mT).to(rows.dtype))
        # A table's rows are looked up in its own precision, also under autocast.
        with nullcontext() if x.is_floating_point() else torch.autocast(x.device.type, enabled=False):
            for term in weight.outers:
                if version_of(term.x) != self._versions[id(term)]:
                    self.refuse(product.parameters, "was given something that the second pass has written over")
                rows = outer.contract(rows, x, product.axis, term, self._products)
        return rows

    def _input_rows(self, product: MatmulUse) -> Tensor:
        """Of the product; the same tensor again for the same input, so that layers which share one share products."""
        if type(product) is not MatmulUse:
            return product.input_rows(self._groups)
        x = product.x
        if x.ndim == 3 and len(x) == self._groups:
            return x
        # The place in the graph as well; and a view that was made without gradients says that it has one, and has none.
        key = (x, version_of(x), x.grad_fn, torch.is_grad_enabled())
        if not self._last[0] or not all(map(operator.is_, key, self._last[0])):
            self._last = (key, product.input_rows(self._groups))
        return self._last[1]

    def _is_small(self, product: MatmulUse) -> bool:
        """Whether the weights of a linear layer are there for every group; its bias also, or it is the same for all."""
        if id(product.weight) not in self._small or type(product) is not MatmulUse:
            return False
        bias = product.bias  # the weight of a layer with no input is smaller than its bias
        return bias is None or id(bias) in self._small or self._of(bias) is None

    def _multiply_small(self, product: MatmulUse) -> Tensor:
        weight, bias, x = self._small[id(product.weight)], product.bias, self._input_rows(product)
        weight = weight if product.axis == 0 else weight.mT
        rows = torch.bmm(x, weight) if bias is None else torch.baddbmm(self._small.get(id(bias), bias), x, weight)
        return rows if rows.shape[:-1] == product.x.shape[:-1] else product.output(rows)

    def _multiply(self, product: MatmulUse, moved: Tensor) -> Tensor:
        bias = None if product.bias is None else product.bias.expand(1, 1, -1)
        if bias is not None and (step := self._of(product.bias)) is not None and step.dense is not None:
            bias = bias + step.dense[:, None]
        x = product.input_rows(self._groups)
        return product.output(_MultiplyEach.apply(x, product.weight, _matrices(moved), bias, product.axis))

    def moved(self, function: Function, args: Args, kwargs: Kwargs, result: object) -> None:
        """Note whose rows were picked."""
        self._moves.see(function.name, function.rows, args, kwargs, result, self._uses)

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

    def _refuse_rows(self, count: int, parameters: Iterable[nn.Parameter]) -> None:
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
        with unseen():  # what is computed here is not a use of the weight
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
    if torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64):
        return True
    return x.is_cuda and x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


@contextmanager
def perturbed_pass(passes: Passes, record: Record, perturbations: ExampleGradients) -> Iterator[PerturbedPass]:
    """A later pass in which every group has its own weights; forward *and* backward belong inside.

    Args:
        passes: Of the step; the first one was recorded.
        record: Of it.
        perturbations: One per group of consecutive examples.

    Raises:
        NotCoveredError: Rows were picked otherwise than in the first pass.
    """
    perturbed = Perturbed(record, perturbations)
    with perturbed, passes.at() as point:
        perturbed.check_rows()
        yield point
