"""What a torch function is, whatever it is called with; what is done with its calls is in ``handlers.table``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deltasam.core.torch_internals.mode_backwards import BACKWARDS
from deltasam.core.torch_internals.modes import OPERATIONS
from deltasam.per_example.row_moves import Reader, reader_of

# fmt: off
# Of a tensor they read no value: not even how many there are, which values have decided elsewhere.
_LOOKS = frozenset([
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "output_nr", "is_cuda",
    "is_cpu", "is_meta", "is_mps", "is_xpu", "is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes", "names",
    "size", "dim", "numel", "stride", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "get_device",
    "element_size", "__len__",
])
# What autocast runs in low precision; under vmap it does not.
_LOWERED = frozenset([
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "matmul",
    "__matmul__", "mm", "bmm", "mv", "addmm", "baddbmm", "linear", "bilinear", "prelu",
])
_SETTINGS = frozenset(["requires_grad_", "rename_", "share_memory_", "detach_"])  # write no value
LIKE = frozenset(["to", "type_as"])
"""Of the other tensor only the type counts."""
NEW = frozenset(["empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"])
"""Of their tensor only shape and type count."""
# fmt: on


TorchFunction = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


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
        in_place: It writes into its first argument.
        lowered: Autocast runs it in low precision.
        rows: Tells which rows it picks by data, if it may.
    """

    name: str
    is_ignored: bool
    backward: Callable[..., Any] | None
    takes_out: bool
    is_like: bool
    in_place: bool
    lowered: bool
    rows: Reader | None


@functools.lru_cache(maxsize=4096)
def function_of(func: TorchFunction) -> Function:
    """What is known of it; worked out once."""
    name = getattr(func, "__name__", None) or str(func)
    # The read of a property is a function of its own for each: ``Tensor.shape.__get__``.
    looked_at = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
    return Function(
        name=name,
        is_ignored=looked_at in _LOOKS or getattr(func, "namespace", "") == "aten",
        backward=BACKWARDS.get(func),
        takes_out=not isinstance(func, OPERATIONS),
        is_like=name in LIKE,
        in_place=_in_place(name),
        lowered=name in _LOWERED,
        rows=reader_of(name),
    )


def _in_place(name: str) -> bool:
    return name in ("__iadd__", "__imul__") or (
        name.endswith("_") and not name.endswith("__") and name not in _SETTINGS
    )
