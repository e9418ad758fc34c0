"""Which torch function is treated how, where it is given parameters: the table to read, and to add a line to.

Functions that are not in it are run as they are where they are given parameters and constants (``alone.keep``), and
by ``vmap`` where they are given examples (``mapped.map_over_examples``). Before a table is looked at, the rules for
products and normalisations (``rules.PRODUCTS``, ``rules.AFFINES``), what is written in place, functions that consist
of others (``composed.COMPOSED``) and those that are refused (``rules.REFUSALS``) go their own ways; see
``tracing.ParameterTracer``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltasam.per_example.functions import LIKE, NEW, TorchFunction
from deltasam.per_example.handlers import alone, copies, mapped, writes
from deltasam.per_example.handlers.tracer import Call, Handler, Tracer, refusing


def _convert(tracer: Tracer, call: Call) -> Any:
    """``x.to(other)``: of the other tensor only device and type count."""
    if len(call.tensors) < 2:
        return NotImplemented
    tensor, other = call.tensors[:2]
    return tracer.trace(torch.Tensor.to, tensor, other.device, other.dtype)


def _constant(tracer: Tracer, call: Call) -> Any:
    """A new tensor of the shape and type of another."""
    result = call.run()
    tracer.constants[id(result)] = result
    return result


@dataclass(frozen=True, slots=True)
class Handling:
    """How a function is treated.

    Attributes:
        alone: What is done where it is given parameters and constants only.
        with_examples: What is done where it is given examples as well.
        first: What is done before anything else is looked at; None: nothing.
        reads: Whether it reads values into Python, where copies cannot follow.
    """

    alone: Handler = alone.keep
    with_examples: Handler = mapped.map_over_examples
    first: Handler | None = None
    reads: bool = False


_DEFAULT = Handling()
_BROADCAST = Handling(with_examples=copies.broadcast)
_ADD = Handling(with_examples=copies.add)
_CONCATENATE = Handling(with_examples=copies.concatenate)
_EXPAND = Handling(alone=alone.expand)
_COUNT = Handling(alone=alone.refuse_count)
_DROPOUT = Handling(alone=alone.dropout)
_OTHER_DROPOUT = Handling(alone=refusing("{name} draws random numbers for it, not for the examples"))
_SPOIL = Handling(alone=writes.spoil_data, with_examples=writes.spoil_data)


def _rows(handling: Handling, names: Iterable[TorchFunction | str]) -> dict[TorchFunction | str, Handling]:
    return dict.fromkeys(names, handling)


# fmt: off
TABLE: dict[TorchFunction | str, Handling] = {
    # A leading axis of 1 means: the same for every example.
    **_rows(_ADD, ["add", "__add__", "__radd__", "__iadd__", "add_"]),
    **_rows(_ADD, ["sub", "__sub__", "__rsub__", "rsub", "subtract"]),
    **_rows(_BROADCAST, ["mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply"]),
    **_rows(_BROADCAST, ["div", "__div__", "__truediv__", "__rtruediv__", "__rdiv__", "true_divide", "divide"]),
    **_rows(_BROADCAST, ["pow", "__pow__", "addcmul", "addcdiv", "lerp", "where", "masked_fill", "maximum", "minimum"]),
    **_rows(_BROADCAST, ["scaled_dot_product_attention"]),
    **_rows(_CONCATENATE, ["cat", "concat", "concatenate"]),
    **_rows(Handling(with_examples=mapped.multiply_matrices), ["matmul", "__matmul__"]),
    # A leading axis of 1 is repeated.
    **_rows(_EXPAND, ["expand", "broadcast_to"]),
    "expand_as": replace(_EXPAND, with_examples=copies.broadcast),
    "repeat": Handling(alone=alone.repeat),
    # How much comes out depends on values: who asks for the shape has read them.
    **_rows(_COUNT, ["nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histc"]),
    "__getitem__": Handling(alone=alone.pick),
    # Values are read into Python.
    **_rows(Handling(reads=True), [
        "item", "tolist", "numpy", "__float__", "__int__", "__index__", "__bool__", "__complex__", "__array__",
        "__contains__", "__dlpack__", "equal", "allclose", "is_nonzero",
    ]),
    # Products with a mask that is drawn; and what draws numbers of another kind.
    **_rows(_DROPOUT, ["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"]),
    **_rows(_OTHER_DROPOUT, ["alpha_dropout", "feature_alpha_dropout"]),
    # Of a tensor only shape and type count.
    **_rows(Handling(first=_convert), LIKE),
    **_rows(Handling(first=_constant), NEW),
    torch.Tensor.data.__set__: _SPOIL,  # type: ignore[attr-defined]
}
# fmt: on


def handling_of(func: TorchFunction, name: str) -> Handling:
    """How a function is treated.

    Args:
        func: The function.
        name: Its name.
    """
    if (found := TABLE.get(name) or TABLE.get(func)) is not None:
        return found
    return TABLE["zeros_like"] if name.startswith("new_") else _DEFAULT
