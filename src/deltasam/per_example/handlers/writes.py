"""Functions that write: into what is shared, into tensors of the examples, or by ``out=``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deltasam.per_example.functions import TorchFunction
from deltasam.per_example.handlers.copies import own_rows, spread_out
from deltasam.per_example.handlers.tracer import FAILURES, Call, Handler, Tracer, raise_if_out_of_memory, refusing
from deltasam.per_example.parameter_values import computed, tensors_in

# An index, as in ``x[index]``: numbers, slices, tensors, None, an ellipsis, or several of these.
Index = Any

refuse_unfollowed: Handler = refusing(
    "or what was computed from it is written into, which copies for each example cannot follow"
)


def spoil_data(tracer: Tracer, call: Call) -> Any:
    """``x.data = value``."""
    tracer.spoil(tracer.parameters_in(call.tensors), "it is put in the place of another tensor's values")
    return call.run()


def into(tracer: Tracer, call: Call) -> Any:
    """A function that writes its result into the tensor ``out``: the result first, as without it."""
    out, args = call.kwargs["out"], call.args
    kwargs = {key: value for key, value in call.kwargs.items() if key != "out"}
    result = tracer.trace(call.func, *args, **kwargs)
    if not isinstance(out, Tensor) or id(result) in tracer.shared or id(out) in tracer.shared:
        tracer.refuse(tracer.parameters_in(tensors_in((args, kwargs))), f"{call.name} writes it into out=")
        return call.run()
    tracer.constants.pop(id(out), None)
    return out.resize_(result.shape).copy_(result)


def in_place(tracer: Tracer, call: Call) -> Any:
    """A function that changes its first argument, which is shared, or is given what is."""
    args, kwargs, name, shared = call.args, call.kwargs, call.name, tracer.shared
    target, *others = args
    before, parameters = tracer.shared_in(call.tensors), tracer.parameters_in(call.tensors)
    memory = _memory(target)
    if any(_memory(p) == memory for p in parameters):  # .data, .detach()
        tracer.spoil(parameters, "the forward pass writes into its memory")
        return call.run()
    if name == "__setitem__" and any(id(t) in before for t in tensors_in(others[0])):
        return tracer.run_refused(call, "the places that the forward pass writes into depend on it")
    if not tracer.is_fixed(call.tensors):
        return (_examples_into_shared if id(target) in before else _shared_among_examples)(tracer, call)
    again = written if name == "__setitem__" else out_of_place(call.func, name, is_mapped=id(target) in before)
    source = target if id(target) in before else target.detach().clone()  # a constant, also to a view of it
    result = call.run()
    tracer.constants.pop(id(target), None)
    shared[id(target)] = computed(target, again, (source, *others), kwargs, before)
    return result


def _examples_into_shared(tracer: Tracer, call: Call) -> Any:
    """Examples are written into a shared value, which has a row for each of them from now on."""
    target = call.args[0]
    try:
        rows = own_rows(tracer, tracer.shared[id(target)])
    except FAILURES as error:
        raise_if_out_of_memory(error)
        return tracer.run_refused(call, f"{call.name} writes examples into it ({error})")
    target.copy_(rows)
    del tracer.shared[id(target)]
    return tracer.trace(call.func, *call.args, **call.kwargs)


def _shared_among_examples(tracer: Tracer, call: Call) -> None:
    """``target[index] = value``: a shared value is written into a tensor of the examples, for each its own."""
    target, index, value = call.args
    found = tracer.shared[id(value)]
    try:
        copies = spread_out(tracer, found, len(target), value.ndim + 1)
        own = values_of_owners(target, index, copies)
    except FAILURES as error:
        raise_if_out_of_memory(error)
        reason = f"is written among the examples in a way that copies cannot follow ({error})"
        tracer.refuse(found.parameters, reason)
        own = value
    target[index] = own
    tracer.met(found.parameters, target)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# The same as functions that write nowhere.


def written(x: Tensor, index: Index, value: Tensor | complex) -> Tensor:
    """What x is after ``x[index] = value``, as a new tensor; ``vmap`` may map any of the two.

    Args:
        x: Any tensor.
        index: As in ``x[index]``.
        value: A tensor or number.
    """
    places = torch.arange(x.numel(), device=x.device).view(x.shape)[index]
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    value = value.reshape(value.shape[max(0, value.ndim - places.ndim) :]).expand(places.shape)
    return x.flatten().scatter(0, places.flatten(), value.flatten()).view(x.shape)


def out_of_place(func: TorchFunction, name: str, *, is_mapped: bool) -> Callable[..., Tensor]:
    """A function that computes what an in-place one writes, as a new tensor.

    Args:
        func: The in-place one.
        name: Its name.
        is_mapped: Whether ``vmap`` maps what it writes into; if not, it cannot write there what is mapped.
    """
    if is_mapped:
        return lambda x, *others, **named: func(x.clone(), *others, **named)
    if name == "copy_":
        return lambda x, value, **_: written(x, ..., value)
    return getattr(Tensor, name.replace("__i", "__") if name.startswith("__") else name.removesuffix("_"))


def values_of_owners(x: Tensor, index: Index, values: Tensor) -> Tensor:
    """What to write by ``x[index] = ...`` where every row of x has a value of its own.

    Args:
        x: It is written into; its first axis is that of the rows [n, ...].
        index: As in ``x[index]``.
        values: One per row [n, *shape]; a single one would be broadcast to what the index selects.
    """
    depth = min(sum(map(_axes, index if isinstance(index, tuple) else (index,))), x.ndim)
    numbers = torch.arange(len(x), device=x.device).view(-1, *[1] * (depth - 1))
    owners = numbers.expand(x.shape[:depth])[index]  # of what the index picks along the axes that it names
    ndim = owners.ndim + x.ndim - depth
    shape = values.shape[1:]
    shape = torch.Size([1] * (ndim - len(shape))) + shape[max(0, len(shape) - ndim) :]
    named = shape[: owners.ndim]
    places = [
        torch.arange(size, device=x.device).view(-1, *[1] * (owners.ndim - 1 - axis)) for axis, size in enumerate(named)
    ]
    return values.reshape(len(x), *shape)[(owners, *places)]


def _axes(index: Index) -> int:
    """How many axes one part of an index stands for; an ellipsis may stand for all."""
    if index is None:
        return 0
    if index is Ellipsis:
        return torch.iinfo(torch.int32).max
    return index.ndim if isinstance(index, Tensor) and index.dtype == torch.bool else 1
