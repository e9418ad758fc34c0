"""Uses with copies that meet the examples by broadcasting: of what is shared, one value for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltasam.per_example.handlers.tracer import FAILURES, Call, Handler, Tracer, raise_if_out_of_memory, refusing
from deltasam.per_example.parameter_values import ParameterExpr

_refuse_without_axis = refusing(
    "{name} has no axis of examples; where a loss is the sum of several terms, return one loss per example"
)


def _broadcast(tracer: Tracer, call: Call, *, of_constants: Handler) -> Any:
    """A function for which a leading axis of 1 means: the same for every example.

    Args:
        tracer: The tracer.
        call: The call.
        of_constants: What is done where no axis of examples is in sight.
    """
    tensors, shared = call.tensors, tracer.shared
    ndim = max(t.ndim for t in tensors)
    examples = [t for t in tensors if id(t) not in shared and t.ndim == ndim > 0]
    count = max((len(t) for t in examples), default=0)
    found = [t for t in tensors if id(t) in shared]
    leads = any(t.ndim == ndim for t in found)
    if not examples or (count == 1 and leads and not any(t.requires_grad for t in examples)):
        if any(t.requires_grad for t in tensors if id(t) not in shared):
            return of_constants(tracer, call)
        result = call.run()  # masks and the like
        tracer.keep(call, result)
        return result
    for value in found:
        if value.ndim == ndim and len(value) != 1:  # ids or a state that were made up for each example, say
            return with_rows(tracer, call, [value])
    return with_copies(tracer, call, count, ndim)


def _mean_over_copies(tracer: Tracer, call: Call) -> Any:
    """A term of parameters alone in a loss of all examples: its mean over the examples' copies."""
    if len(tracer.given) != 1:
        return _refuse_without_axis(tracer, call)
    (count,) = tracer.given
    try:
        copies = tracer.copies_of(tracer.parameters_in(call.tensors), count)
        means = {key: value.copies(copies).mean(0) for key, value in tracer.shared_in(call.tensors).items()}
    except FAILURES as error:
        return _refuse_copies(tracer, call, error)
    args, _ = call.with_tensors(means)
    return call.func(*args, **call.kwargs)


broadcast: Handler = partial(_broadcast, of_constants=_refuse_without_axis)
add: Handler = partial(_broadcast, of_constants=_mean_over_copies)


def concatenate(tracer: Tracer, call: Call) -> Any:
    """Tensors one after the other: a value may stand beside what the examples have, but not among them."""
    args, kwargs = call.args, call.kwargs
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    if not isinstance(dim, int) or dim % max(call.tensors[0].ndim, 1) == 0:
        return tracer.run_refused(call, f"{call.name} puts it among the rows of the examples")
    return broadcast(tracer, call)


def with_copies(tracer: Tracer, call: Call, count: int, ndim: int) -> Any:
    """Call a function with a copy for each example in the place of every shared value.

    Args:
        tracer: The tracer.
        call: The call.
        count: How many rows the examples have.
        ndim: How many axes.
    """
    try:
        spread = {key: spread_out(tracer, value, count, ndim) for key, value in tracer.shared_in(call.tensors).items()}
    except FAILURES as error:
        return _refuse_copies(tracer, call, error)
    parameters = tracer.parameters_in(call.tensors)
    args, kwargs = call.with_tensors(spread)
    result = call.func(*args, **kwargs)
    tracer.met(parameters, result)
    return result


def spread_out(tracer: Tracer, value: ParameterExpr, count: int, ndim: int) -> Tensor:
    """A shared value for every example [count, ...], with as many axes as what it meets."""
    if value.lookup is not None:
        ids, rows = value.lookup.x, value.value
        if rows.ndim < ndim:
            ids, rows = (t.view(*[1] * (ndim - rows.ndim), *t.shape) for t in (ids, rows))
        ids, rows = (t.expand(count, *t.shape[1:]) for t in (ids, rows))
        return tracer.run_product(lambda: rows, replace(value.lookup, x=ids))
    copies = value.copies(tracer.copies_of(value.parameters, count))
    if value.value.ndim == ndim:
        return copies.flatten(0, 1)
    return copies.view(count, *[1] * (ndim - copies.ndim), *value.value.shape)


def with_rows(tracer: Tracer, call: Call, values: Sequence[Tensor]) -> Any:
    """Call a function with values whose row i is that of example i, made of its copies of the parameters."""
    shared = tracer.shared
    try:
        # Constants among them: the same as tensors of the examples.
        rows = {id(t): own_rows(tracer, shared[id(t)]) if id(t) in shared else t.view_as(t) for t in values}
    except FAILURES as error:
        return _refuse_copies(tracer, call, error)
    args, kwargs = call.with_tensors(rows)
    return tracer.trace(call.func, *args, **kwargs)


def own_rows(tracer: Tracer, value: ParameterExpr) -> Tensor:
    """A shared value with as many rows as there are examples [B, ...]: of each the row of its own copy."""
    if value.lookup is not None:
        return tracer.run_product(lambda: value.value.view_as(value.value), value.lookup)
    count = len(value.value)
    own = torch.arange(count, device=value.value.device)
    return value.copies(tracer.copies_of(value.parameters, count))[own, own]


def _refuse_copies(tracer: Tracer, call: Call, error: BaseException) -> Any:
    raise_if_out_of_memory(error)
    return tracer.run_refused(call, f"{call.name} meets a value that copies do not make: {error}")
