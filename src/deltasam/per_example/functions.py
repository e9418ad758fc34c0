"""What a torch function is to the engine, whatever it is called with, and apart from the tables of rules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deltasam.core.torch_internals.mode_backwards import BACKWARDS
from deltasam.per_example.row_moves import Reader, reader_of

# fmt: off
# Of a tensor they read no value: not even how many there are, which values have decided elsewhere.
_LOOKS = frozenset([
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "output_nr", "is_cuda",
    "is_cpu", "is_meta", "is_mps", "is_xpu", "is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes", "names",
    "size", "dim", "numel", "stride", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "get_device",
    "element_size", "__len__",
])
# A leading axis of 1 means: the same for every example.
_BROADCAST = frozenset([
    "add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__rsub__", "rsub", "subtract", "mul",
    "__mul__", "__rmul__", "__imul__", "mul_", "multiply", "div", "__div__", "__truediv__", "__rtruediv__",
    "__rdiv__", "true_divide", "divide", "addcmul", "addcdiv", "where", "masked_fill", "maximum", "minimum", "lerp",
    "pow", "__pow__", "scaled_dot_product_attention", "cat", "concat", "concatenate", "expand_as",
])
# What autocast runs in low precision; under vmap it does not.
_LOWERED = frozenset([
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "matmul",
    "__matmul__", "mm", "bmm", "mv", "addmm", "baddbmm", "linear", "bilinear", "prelu",
])
_SUMS = frozenset(["add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__rsub__", "rsub", "subtract"])
_MATMULS = frozenset(["matmul", "__matmul__"])
_SPREADS = frozenset(["expand", "expand_as", "broadcast_to", "repeat"])
_READS = frozenset([
    "item", "tolist", "numpy", "__float__", "__int__", "__index__", "__bool__", "__complex__", "__array__",
    "__contains__", "__dlpack__", "equal", "allclose", "is_nonzero",
])
# How much comes out depends on values: who asks for the shape has read them.
_COUNTS = frozenset(["nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histc"])
_SETTINGS = frozenset(["requires_grad_", "rename_", "share_memory_", "detach_"])  # write no value
_LIKE = frozenset(["to", "type_as"])  # of the other tensor only the type counts
_NEW = frozenset(["empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"])
_DROPOUT = frozenset(["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"])  # products with a mask
_DROPOUT_OF_ANOTHER_KIND = frozenset(["alpha_dropout", "feature_alpha_dropout"])
_CAT = frozenset(["cat", "concat", "concatenate"])
# fmt: on
_OPERATIONS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # some of which exist with out= only


@dataclass(frozen=True, slots=True)
class Function:
    """A torch function.

    Attributes:
        name: Its own.
        is_ignored: It looks at shapes, types and places only, and returns no tensor; or it is an operation of the
            dispatcher, with which a dispatch mode (a profiler, a counter) goes on after the function was seen.
        backward: What to call in its place, if it is a backward.
        takes_out: It may write its result into ``out=``.
        is_like: Of its second tensor only the type counts.
        is_new: Of its tensor only shape and type count.
        reads: It reads values into Python.
        counts: How much it returns depends on values.
        in_place: It writes into its first argument.
        puts_together: It is a ``cat``.
        broadcasts: A leading axis of 1 means: the same for every example.
        multiplies_matrices: So it does where both sides are stacks of matrices.
        adds: It is a sum or a difference.
        spreads: It repeats a leading axis of 1.
        drops: It draws a mask; or, ``alpha``, numbers of another kind.
        lowered: Autocast runs it in low precision.
        rows: Tells which rows it picks by data, if it may.
    """

    name: str
    is_ignored: bool
    backward: Callable[..., Any] | None
    takes_out: bool
    is_like: bool
    is_new: bool
    reads: bool
    counts: bool
    in_place: bool
    puts_together: bool
    broadcasts: bool
    multiplies_matrices: bool
    adds: bool
    spreads: bool
    drops: bool | str
    lowered: bool
    rows: Reader | None


@functools.lru_cache(maxsize=4096)
def function_of(func: Any) -> Function:
    """What is known of it; worked out once."""
    name = getattr(func, "__name__", None) or str(func)
    # The read of a property is a function of its own for each: ``Tensor.shape.__get__``.
    looked_at = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
    return Function(
        name=name,
        is_ignored=looked_at in _LOOKS or getattr(func, "namespace", "") == "aten",
        backward=BACKWARDS.get(func),
        takes_out=not isinstance(func, _OPERATIONS),
        is_like=name in _LIKE,
        is_new=name in _NEW or name.startswith("new_"),
        reads=name in _READS,
        counts=name in _COUNTS,
        in_place=_in_place(name),
        puts_together=name in _CAT,
        broadcasts=name in _BROADCAST,
        multiplies_matrices=name in _MATMULS,
        adds=name in _SUMS,
        spreads=name in _SPREADS,
        drops="alpha" if name in _DROPOUT_OF_ANOTHER_KIND else name in _DROPOUT,
        lowered=name in _LOWERED,
        rows=reader_of(name),
    )


def _in_place(name: str) -> bool:
    return name in ("__iadd__", "__imul__") or (
        name.endswith("_") and not name.endswith("__") and name not in _SETTINGS
    )
