"""Gradients of small parameters, formed together: of all layers that are alike in as many operations as of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deltasam.per_example.outer_products import OuterProduct, is_small
from deltasam.per_example.rules import Affine, MatmulUse

_Layer = tuple[MatmulUse | Affine, tuple[nn.Parameter, ...], Tensor, Tensor]


class SmallGradients:
    """Gradients of parameters that are used once each.

    Args:
        groups: For how many groups of examples.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._alike: dict[tuple[object, ...], list[_Layer]] = {}

    def fit(self, product: MatmulUse | Affine, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether the parameters in a layer have gradients that are formed here."""
        if isinstance(product, Affine):
            if not product.key or parameters[0].ndim != 1:
                return False
        elif type(product) is not MatmulUse:
            return False
        return product.x.is_floating_point() and is_small(self._groups * parameters[0].numel())

    def take(self, product: MatmulUse | Affine, parameters: tuple[nn.Parameter, ...], x: Tensor, b: Tensor) -> None:
        """Take a layer.

        Args:
            product: What it does.
            parameters: Those of which gradients are wanted.
            x: The rows that went in [g, R, I].
            b: Gradient of the loss with respect to the rows that came out [g, R, O].
        """
        of = product.axis if isinstance(product, MatmulUse) else product.key
        wanted = tuple(p is product.weight for p in parameters)
        # Where there are many rows, to put them together would cost more than it saves.
        alone = None if is_small(x.numel() + b.numel()) else id(product)
        key = (of, wanted, x.shape, x.dtype, b.shape, b.dtype, b.device, alone)
        self._alike.setdefault(key, []).append((product, parameters, x, b))

    def formed(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its gradient for every group [g, *shape]."""
        for taken in self._alike.values():
            (product, *_), owners, xs, bs = zip(*taken, strict=True)
            x, b = (torch.cat(rows) if len(rows) > 1 else rows[0] for rows in (xs, bs))
            for of_all in zip(*owners, strict=True):
                each = _gradient(product, of_all[0], x, b).view(len(of_all), self._groups, *of_all[0].shape)
                yield from ((p, each[number]) for number, p in enumerate(of_all))


def _gradient(product: MatmulUse | Affine, parameter: nn.Parameter, x: Tensor, b: Tensor) -> Tensor:
    if isinstance(product, Affine):
        return replace(product, x=x).gradient(parameter, b, len(b))
    term = OuterProduct(x, b, product.axis)
    return term.matrix(parameter.shape) if parameter is product.weight else term.biases()
