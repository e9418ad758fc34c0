"""Uses by functions that nothing is known of: ``vmap`` over the examples and their copies of the parameters."""

from __future__ import annotations

import itertools
import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from deltasam.per_example.handlers.copies import broadcast, with_rows
from deltasam.per_example.handlers.tracer import FAILURES, Call, Tracer, raise_if_out_of_memory
from deltasam.per_example.parameter_values import map_tensors
from deltasam.per_example.rules import is_parameter


def map_over_examples(tracer: Tracer, call: Call) -> Any:
    """Call a function once per example, each with its row of the examples and its own parameters."""
    func, name, args, kwargs, tensors = call.func, call.name, call.args, call.kwargs, call.tensors
    count = next((len(t) for t in tensors if tracer.is_of_examples(t) and t.ndim), None)
    if count is None:
        return tracer.run_refused(call, f"{name} has no axis of examples")
    parameters, found = tracer.parameters_in(tensors), tracer.shared_in(tensors)
    rows = {id(t): _plainly_laid(t) for t in tensors if tracer.is_of_examples(t) and t.ndim and len(t) == count}
    device = next(iter(rows.values())).device.type
    # What autocast does to the arguments of such a function it does not do under vmap.
    lower = call.function.lowered and torch.is_autocast_enabled(device)

    def one(values: dict[int, Tensor], row: dict[int, Tensor]) -> Tensor:
        def pick(t: Tensor) -> Tensor:
            if id(t) in found:
                t = found[id(t)].function(values)
            elif id(t) in row:
                t = row[id(t)][None]
            return t.to(torch.get_autocast_dtype(device)) if lower and t.dtype == torch.float32 else t

        result: Tensor = func(*map_tensors(pick, args), **map_tensors(pick, kwargs))
        if result.ndim and len(result) != 1:
            raise ValueError("its result does not have the examples as the first axis")
        return result.squeeze(0)

    try:
        copies = tracer.copies_of(parameters, count)
        with torch.autocast(device, enabled=False) if lower else nullcontext():
            result = torch.func.vmap(one)(copies, rows)
        if tracer.accept(result, call.run):
            tracer.met(parameters, result)
            return result
        reason = f"{name} does not treat the examples one by one"
    except FAILURES as error:
        raise_if_out_of_memory(error)
        others = [t for t in tensors if id(t) not in rows and t.ndim and len(t) == count and not is_parameter(t)]
        if others:
            return with_rows(tracer, call, others)
        reason = f"{name} cannot be run with a copy for each example ({str(error).partition(chr(10))[0]})"
    return tracer.run_refused(call, reason)


def multiply_matrices(tracer: Tracer, call: Call) -> Any:
    """``matmul``: stacks of matrices on both sides are broadcast against each other."""
    by_stacks = min(t.ndim for t in call.tensors) > 2
    return (broadcast if by_stacks else map_over_examples)(tracer, call)


def _plainly_laid(t: Tensor) -> Tensor:
    """A contiguous tensor with strides that are so too where an axis is 1 long: convolutions take others for NHWC."""
    expected = tuple(itertools.accumulate((1, *t.shape[:0:-1]), operator.mul))[::-1]
    return t.clone(memory_format=torch.contiguous_format) if t.is_contiguous() and t.stride() != expected else t
