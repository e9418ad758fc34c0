"""How functions use parameters: which argument is the weight, and what the weight meets.

A layer that is none of these needs no rule of its own: its parameters are handed to it in copies, one per example
(see ``tracing``). Rules are there where copies would cost too much.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltasam.core.vectors import wide

_LAST = torch.channels_last


@dataclass(slots=True)  # not frozen: one is made in every layer, and that takes four times as long
class MatmulUse:
    """``output = input times weight (+ bias)``, seen as rows of the input and rows of the output.

    Attributes:
        x: The input [B, ..., I].
        weight: The matrix; what it has beyond two axes is one.
        bias: Of the output, or None.
        axis: The axis of the weight that the input contracts with.
        parameters: Weight and bias, if they are parameters.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    axis: int
    parameters: tuple[nn.Parameter, ...] = field(init=False)

    kind: ClassVar[str] = "product"

    def __post_init__(self) -> None:
        weight, bias = self.weight, self.bias
        self.parameters = (weight,) if is_parameter(weight) else ()
        if bias is not None and is_parameter(bias):
            self.parameters += (bias,)

    def input_rows(self, groups: int) -> Tensor:
        """The input [groups, R, I]."""
        return _rows(self.x, groups)

    def output_rows(self, y: Tensor, groups: int) -> Tensor:
        """Something of the output's shape as [groups, R, O]."""
        return _rows(y, groups)

    def output(self, rows: Tensor) -> Tensor:
        """The output from its rows."""
        return rows.view(*self.x.shape[:-1], rows.shape[-1])


@dataclass(slots=True)
class Lookup(MatmulUse):
    """Ids [B, ...] that look up rows of a table: a product with one-hot rows."""

    kind: ClassVar[str] = "lookup"

    def input_rows(self, groups: int) -> Tensor:
        """The ids [groups, R]."""
        return self.x.reshape(groups, -1)

    def output(self, rows: Tensor) -> Tensor:
        """The output from its rows."""
        return rows.view(*self.x.shape, rows.shape[-1])


@dataclass(slots=True)
class PaddedLookup(Lookup):
    """A lookup in which one id gets no gradient."""

    ignored: int


@dataclass(slots=True)
class Convolution(MatmulUse):
    """A 2-D convolution [B, C, H, W]: a product of the patches it sees."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    kind: ClassVar[str] = "convolution"

    def input_rows(self, groups: int) -> Tensor:
        """The patches [groups, R, I]: R places of the output, I numbers of a patch."""
        patches = F.unfold(self.x, self.kernel, self.dilation, self.padding, self.stride).mT
        return patches.reshape(groups, -1, patches.shape[-1])

    def output_rows(self, y: Tensor, groups: int) -> Tensor:
        """Something of the output's shape as [groups, R, O]."""
        return y.flatten(2).mT.reshape(groups, -1, y.shape[1])

    def output(self, rows: Tensor) -> Tensor:
        """The output from its rows."""
        y = rows.view(len(self.x), -1, rows.shape[-1]).mT.unflatten(2, self._size())
        # As a convolution lays it out: a dropout after it draws its mask in that order.
        last = any(t.is_contiguous(memory_format=_LAST) and not t.is_contiguous() for t in (self.x, self.weight))
        return y.contiguous(memory_format=_LAST if last else torch.contiguous_format)

    @property
    def places(self) -> int:
        """How many places the output has, R of one example."""
        return math.prod(self._size())

    def _size(self) -> tuple[int, ...]:
        sides = zip(self.x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((length + 2 * p - d * (k - 1) - 1) // s + 1 for length, k, s, p, d in sides)


@dataclass(slots=True)
class Affine:
    """``output = plain(input) * weight + bias``, after normalisation, say.

    Attributes:
        x: The input [B, ...].
        run: Computes the output of an input, a weight and a bias; without these, what they are applied to.
        weight: Or None.
        bias: Or None.
        channels: The axis of the output that weight and bias lie along, from the front; None: the last ones.
        key: Equal where ``run`` computes the same.
    """

    x: Tensor
    run: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    weight: Tensor | None
    bias: Tensor | None
    channels: int | None = None
    key: tuple[object, ...] = ()

    kind: ClassVar[str] = "affine"

    def input_rows(self, groups: int) -> Tensor:
        """The input [groups, R, D]."""
        return _rows(self.x, groups)

    def output_rows(self, y: Tensor, groups: int) -> Tensor:
        """Something of the output's shape as [groups, R, D]."""
        return _rows(y, groups)

    def gradient(self, parameter: nn.Parameter, b: Tensor, groups: int) -> Tensor:
        """The gradient of weight or bias in every group [g, *shape].

        Args:
            parameter: Which of them.
            b: Gradient of the loss with respect to the output.
            groups: Their number.
        """
        b = wide(b)
        if parameter is self.weight:
            b = b * self.run(wide(self.x.detach()), None, None)
        return b.reshape(groups, -1, *parameter.shape).sum(1)


@dataclass(frozen=True)
class Masked:
    """``func(*args)`` with no gradient where ``constant`` is true, which a formula by values alone would not show.

    Attributes:
        func: Computes the values.
        args: Its arguments.
        constant: Where the result passes no gradient on; broadcast against it.
    """

    func: Callable[..., Tensor]
    args: tuple[Any, ...]
    constant: Tensor


PRODUCTS: dict[Any, Callable[..., MatmulUse | None]] = {}
MASKED: dict[Any, Callable[..., Masked | None]] = {}
AFFINES: dict[Any, Callable[..., Affine | None]] = {}
ELEMENTWISE: dict[Any, Callable[..., Affine | None]] = {}
REFUSALS: dict[Any, Callable[..., str | None]] = {}

Reader = TypeVar("Reader")
Pair = int | Sequence[int]


def _for(table: dict[Any, Reader], *functions: Callable[..., Any] | str) -> Callable[[Reader], Reader]:
    def register(reader: Reader) -> Reader:
        table.update(dict.fromkeys(functions, reader))
        return reader

    return register


@_for(PRODUCTS, F.linear)
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> MatmulUse | None:
    if weight.ndim != 2 or input.ndim < 2 or (bias is not None and bias.ndim != 1):
        return None
    return MatmulUse(input, weight, bias, axis=1)


@_for(PRODUCTS, torch.addmm)
def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> MatmulUse | None:
    return MatmulUse(mat1, mat2, input, axis=0) if beta == alpha == 1 and input.ndim == 1 else None


@_for(PRODUCTS, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm)
def _matmul(input: Tensor, other: Tensor) -> MatmulUse | None:
    return MatmulUse(input, other, None, axis=0) if other.ndim == 2 and input.ndim > 1 else None


@_for(PRODUCTS, F.embedding)
def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> MatmulUse | None:
    if padding_idx is None:
        return Lookup(input, weight, None, axis=0)
    return PaddedLookup(input, weight, None, 0, padding_idx % len(weight))


@_for(PRODUCTS, torch.Tensor.__getitem__)
def _rows_of_table(input: Tensor, index: object) -> MatmulUse | None:
    if input.ndim != 2 or not isinstance(index, Tensor):
        return None
    if not index.ndim or index.dtype not in (torch.int32, torch.int64):
        return None
    return Lookup(index.long() % len(input), input, None, axis=0)  # -1 is the last row


@_for(MASKED, F.embedding)
def _padded_embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: object, **__: object
) -> Masked | None:
    if padding_idx is None:
        return None
    return Masked(F.embedding, (input, weight), (input == padding_idx % len(weight))[..., None])


@_for(MASKED, torch.embedding)
def _padded_lookup(weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: object, **__: object) -> Masked | None:
    if padding_idx < 0:
        return None
    return Masked(F.embedding, (indices, weight), (indices == padding_idx)[..., None])


@_for(PRODUCTS, F.conv2d)
def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> MatmulUse | None:
    if groups != 1 or input.ndim != 4 or isinstance(padding, str):
        return None
    kernel = (weight.shape[2], weight.shape[3])
    product = Convolution(input, weight, bias, 1, kernel, _pair(stride), _pair(padding), _pair(dilation))
    # With many places and small kernels a kernel for each example is cheaper: the way of everything without a rule.
    inputs, outputs = weight[0].numel(), len(weight)
    return product if 3 * product.places * (inputs + outputs) < inputs * outputs else None


# Their gradient is not that of what they compute, so nothing that compares values would notice.


@_for(REFUSALS, F.embedding)
def _strange_embedding(input: Tensor, weight: Tensor, *args: object, **kwargs: object) -> str | None:
    options = dict(zip(("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"), args, strict=False)) | kwargs
    return _strange(options)


@_for(REFUSALS, F.embedding_bag)
def _strange_bag(input: Tensor, weight: Tensor, *args: object, **kwargs: object) -> str | None:
    names = ("offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse")
    options = dict(zip(names, args, strict=False)) | kwargs
    if options.get("sparse"):
        return "embedding_bag with sparse=True has no gradient for copies; use sparse=False"
    return _strange(options)


@_for(REFUSALS, torch.embedding)
def _strange_lookup(weight: Tensor, indices: Tensor, *args: object, **kwargs: object) -> str | None:
    return _strange(dict(zip(("padding_idx", "scale_grad_by_freq"), args, strict=False)) | kwargs)


def _strange(options: dict[str, Any]) -> str | None:
    if options.get("scale_grad_by_freq"):
        return "scale_grad_by_freq counts ids over the batch, so examples meet in its gradient"
    if options.get("max_norm") is not None:
        return "max_norm writes into it in the forward pass"
    return None


# What vmap cannot do; and what is exact in its place.


@_for(REFUSALS, "grouped_mm", "_grouped_mm", "grouped_mm_fallback")
def _grouped(*_: object, **__: object) -> str:
    return "meets rows in the order of the experts that they are sent to, not of the examples"


@_for(REFUSALS, "lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(*_: object, **__: object) -> str:
    return (
        "a recurrent layer with packed sequences, projections or dropout between its layers is one function that "
        "cannot be given a copy for each example; pad instead of packing, and have one layer in each module"
    )


@_for(REFUSALS, "multi_head_attention_forward")
def _attention(*_: object, **__: object) -> str:
    return (
        "nn.MultiheadAttention without an axis of examples, or with add_bias_kv or add_zero_attn, is one function that "
        "cannot be given a copy for each example; use nn.Linear layers and F.scaled_dot_product_attention"
    )


@_for(AFFINES, F.layer_norm)
def _layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Affine:
    return Affine(
        input, lambda x, w, b: F.layer_norm(x, normalized_shape, w, b, eps), weight, bias, key=("layer_norm", eps)
    )


@_for(AFFINES, F.rms_norm)
def _rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Affine:
    return Affine(input, lambda x, w, _: F.rms_norm(x, normalized_shape, w, eps), weight, None, key=("rms_norm", eps))


@_for(AFFINES, F.group_norm)
def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Affine:
    return Affine(input, lambda x, w, b: F.group_norm(x, num_groups, w, b, eps), weight, bias, channels=1)


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
    run = functools.partial(F.batch_norm, running_mean=running_mean, running_var=running_var, eps=eps)
    return Affine(input, lambda x, w, b: run(x, weight=w, bias=b), weight, bias, channels=1)


@_for(ELEMENTWISE, torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__)
def _scale(input: object, other: object) -> Affine | None:
    if (sides := _examples_and_parameter(input, other)) is None:
        return None
    x, weight, dtype = *sides, torch.result_type(*sides)
    return Affine(x, lambda x, w, _: x.to(dtype) if w is None else x * w, weight, None, key=("mul", dtype))


@_for(ELEMENTWISE, torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
def _shift(input: object, other: object) -> Affine | None:
    if (sides := _examples_and_parameter(input, other)) is None:
        return None
    x, bias, dtype = *sides, torch.result_type(*sides)
    return Affine(x, lambda x, _, b: x.to(dtype) if b is None else x + b, None, bias, key=("add", dtype))


def _examples_and_parameter(a: object, b: object) -> tuple[Tensor, nn.Parameter] | None:
    """A tensor, and a parameter of its last axes, if two real arguments are these."""
    x, parameter = (b, a) if isinstance(a, nn.Parameter) else (a, b)
    if not (isinstance(x, Tensor) and isinstance(parameter, nn.Parameter)) or x.ndim <= parameter.ndim:
        return None
    real = x.is_floating_point() and parameter.is_floating_point()
    return (x, parameter) if real and x.shape[x.ndim - parameter.ndim :] == parameter.shape else None


def is_parameter(t: Tensor) -> TypeGuard[nn.Parameter]:
    """Whether a tensor is a parameter: what ``isinstance`` says, without its price for every other tensor."""
    return type(t) is nn.Parameter or (type(t) is not Tensor and isinstance(t, nn.Parameter))


def _rows(x: Tensor, groups: int) -> Tensor:
    """A tensor [B, ..., D] as rows of each group [groups, R, D], also where it is empty."""
    if x.ndim == 3 and len(x) == groups:
        return x
    return x.reshape(groups, x.shape[:-1].numel() // groups, x.shape[-1])


def _pair(value: Pair) -> tuple[int, int]:
    """One number for both axes, or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (int(values[0]), int(values[-1]))
