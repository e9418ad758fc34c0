"""Functions of parameters and constants: what they return is the same for all examples, and is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltasam.per_example.handlers.copies import with_copies
from deltasam.per_example.handlers.products import read
from deltasam.per_example.handlers.tracer import Call, Handler, Tracer, refusing
from deltasam.per_example.parameter_values import tensors_in
from deltasam.per_example.rules import PRODUCTS, Lookup


def keep(tracer: Tracer, call: Call) -> Any:
    """Run it; the examples get copies of the result once they meet it."""
    return _kept(tracer, call, call.run())


def _kept(tracer: Tracer, call: Call, result: object) -> Any:
    first = next(value for value in tracer.shared_in(call.tensors).values())
    product = read(PRODUCTS.get(call.func), call.args, call.kwargs) if first.is_parameter else None
    tracer.keep(call, result, product if isinstance(product, Lookup) else None)
    return result


refuse_count: Handler = refusing("{name} gives as many values as its values say")


def pick(tracer: Tracer, call: Call) -> Any:
    """``x[index]``; a mask that depends on parameters picks as many values as these say."""
    by_mask = any(id(t) in tracer.shared and t.dtype == torch.bool for t in tensors_in(call.args[1:]))
    return (refuse_count if by_mask else keep)(tracer, call)


def expand(tracer: Tracer, call: Call) -> Any:
    """A leading axis of 1 that is repeated: to the examples, it seems; and if not, the check will say so."""
    result = call.run()
    if _repeats_first_axis(_first_shared(tracer, call), result):
        return with_copies(tracer, call, len(result), result.ndim)
    return _kept(tracer, call, result)


def repeat(tracer: Tracer, call: Call) -> Any:
    """The same by ``repeat``, which other axes may be repeated by too: then it is kept."""
    value, result = _first_shared(tracer, call), call.run()
    if _repeats_first_axis(value, result) and result.shape[1:] == value.shape[1:]:
        found = tracer.shared[id(value)]
        return found.copies(tracer.copies_of(found.parameters, len(result))).flatten(0, 1)
    return _kept(tracer, call, result)


def _first_shared(tracer: Tracer, call: Call) -> Tensor:
    return next(t for t in call.tensors if id(t) in tracer.shared)


def _repeats_first_axis(value: Tensor, result: Tensor) -> bool:
    return result.ndim == value.ndim > 0 and len(value) == 1 < len(result)


def dropout(tracer: Tracer, call: Call) -> Any:
    """A product with a mask that is drawn once and is the same for all copies."""
    args, kwargs = call.args, call.kwargs
    value, inplace = args[0], kwargs.get("inplace", len(args) > 3 and args[3])
    if _first_shared(tracer, call) is not value:
        return keep(tracer, call)
    mask = call.func(torch.ones_like(value), *args[1:], **kwargs)
    times = torch.Tensor.mul_ if inplace else torch.mul
    return tracer.trace(times, value, tracer.constants.setdefault(id(mask), mask))
