"""How functions use parameters: which argument is the weight, and what the weight meets.

A layer that is none of these needs no rule of its own: its parameters are handed to it in copies, one per example
(see ``uses``). Rules are there where copies would cost too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """``output = input times weight (+ bias)``, the input being rows of numbers, or ids that look up rows.

    Attributes:
        x: The input [B, ..., I], or ids [B, ...].
        weight: The matrix.
        bias: Of the output, or None.
        axis: The axis of the weight that the input contracts with.
        ignored: The id whose row gets no gradient, or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    axis: int
    ignored: int | None = None


@dataclass(frozen=True)
class Affine:
    """``output = plain * weight + bias``, after normalisation, say.

    Attributes:
        plain: Computes the output without weight and bias.
        weight: Or None.
        bias: Or None.
        channels: The axis of the output that weight and bias lie along, from the front; None: the last ones.
    """

    plain: Callable[[], Tensor]
    weight: Tensor | None
    bias: Tensor | None
    channels: int | None = None


PRODUCTS: dict[Any, Callable[..., Product | None]] = {}
AFFINES: dict[Any, Callable[..., Affine | None]] = {}
REFUSALS: dict[Any, Callable[..., str | None]] = {}


def _for(table: dict[Any, Any], *functions: Any) -> Callable[[Any], Any]:
    def register(reader: Any) -> Any:
        table.update(dict.fromkeys(functions, reader))
        return reader

    return register


@_for(PRODUCTS, F.linear)
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product | None:
    return Product(input, weight, bias, axis=1) if weight.ndim == 2 and input.ndim > 1 else None


@_for(PRODUCTS, torch.addmm)
def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Product | None:
    return Product(mat1, mat2, input, axis=0) if beta == alpha == 1 and input.ndim == 1 else None


@_for(PRODUCTS, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm)
def _matmul(input: Tensor, other: Tensor) -> Product | None:
    return Product(input, other, None, axis=0) if other.ndim == 2 and input.ndim > 1 else None


@_for(PRODUCTS, F.embedding)
def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Product | None:
    ignored = padding_idx % len(weight) if padding_idx is not None else None
    return Product(input, weight, None, axis=0, ignored=ignored)


# Their gradient is not that of what they compute, so nothing that compares values would notice.


@_for(REFUSALS, F.embedding)
def _strange_embedding(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> str | None:
    options = dict(zip(("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"), args, strict=False)) | kwargs
    return _strange(options)


@_for(REFUSALS, F.embedding_bag)
def _strange_bag(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> str | None:
    options = dict(zip(("offsets", "max_norm", "norm_type", "scale_grad_by_freq"), args, strict=False)) | kwargs
    return _strange(options)


@_for(REFUSALS, torch.embedding)
def _strange_lookup(weight: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> str | None:
    return _strange(dict(zip(("padding_idx", "scale_grad_by_freq"), args, strict=False)) | kwargs)


def _strange(options: dict[str, Any]) -> str | None:
    if options.get("scale_grad_by_freq"):
        return "scale_grad_by_freq counts ids over the batch, so examples meet in its gradient"
    if options.get("max_norm") is not None:
        return "max_norm writes into it in the forward pass"
    return None


@_for(AFFINES, F.layer_norm)
def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Affine:
    return Affine(lambda: F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


@_for(AFFINES, F.rms_norm)
def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Affine:
    return Affine(lambda: F.rms_norm(input, normalized_shape, None, eps), weight, None)


@_for(AFFINES, F.group_norm)
def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Affine:
    return Affine(lambda: F.group_norm(input, num_groups, None, None, eps), weight, bias, channels=1)


@_for(AFFINES, F.batch_norm)
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Affine | None:
    if training:
        return None  # its examples meet; `check` says so
    return Affine(lambda: F.batch_norm(input, running_mean, running_var, eps=eps), weight, bias, channels=1)
