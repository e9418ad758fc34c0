"""Functions that a rule describes: as products of the examples with parameters, or element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deltasam.per_example.functions import Args, Kwargs
from deltasam.per_example.handlers.tracer import Call, Tracer
from deltasam.per_example.rules import AFFINES, ELEMENTWISE, MASKED, PRODUCTS, Affine, Masked, MatmulUse, is_parameter

Read = TypeVar("Read")


def read(rule: Callable[..., Read | None] | None, args: Args, kwargs: Kwargs) -> Read | None:
    """What a rule makes of a call; None where there is none, or the call has arguments that the rule does not know."""
    if rule is None:
        return None
    try:
        return rule(*args, **kwargs)
    except TypeError:
        return None


def parameters_as_they_are(tracer: Tracer, call: Call) -> Any:
    """A rule of parameters themselves and examples: nothing that is looked at later holds for these, and most are."""
    func = call.func
    if (rule := PRODUCTS.get(func)) is not None:
        product = read(rule, call.args, call.kwargs)
        if product and _is_of_parameters(tracer, product) and not tracer.is_constant(product.x):
            return tracer.run_product(call.run, product)
    elif (by_element := AFFINES.get(func) or ELEMENTWISE.get(func)) is not None:
        affine = read(by_element, call.args, call.kwargs)
        if affine is not None and (parameters := _parameters_of(tracer, affine)):
            result = tracer.affine(affine)
            tracer.met(parameters, result)
            return result
    return NotImplemented


def by_rule(tracer: Tracer, call: Call) -> Any:
    """Any other use that a rule describes, of values computed from parameters as well."""
    func, args, kwargs = call.func, call.args, call.kwargs
    if (product := read(PRODUCTS.get(func), args, kwargs)) and _is_of_parameters(tracer, product):
        return tracer.run_product(call.run, product)
    if affine := read(AFFINES.get(func), args, kwargs):
        return _element_by_element(tracer, affine)
    if masked := read(MASKED.get(func), args, kwargs):
        return _masked(tracer, masked)
    return NotImplemented


def _is_of_parameters(tracer: Tracer, product: MatmulUse) -> bool:
    """Whether weight and bias are parameters as they are, and the input belongs to the examples."""
    shared = tracer.shared
    weight, bias = shared.get(id(product.weight)), shared.get(id(product.bias))
    plain = (weight is None or weight.is_parameter) and (bias is None or bias.is_parameter)
    return plain and id(product.x) not in shared


def _parameters_of(tracer: Tracer, affine: Affine) -> list[nn.Parameter]:
    """The wanted parameters in it, if all it consists of are these, constants, and examples that have a graph."""
    x, names = affine.x, tracer.names
    if affine.channels is not None or affine.weight is affine.bias or not x.is_contiguous():
        return []  # what comes out of others lies in memory as the function decides
    if not x.requires_grad or not tracer.is_of_examples(x):
        return []
    sides = [t for t in (affine.weight, affine.bias) if t is not None]
    wanted = [t for t in sides if is_parameter(t) and id(t) in names]
    rest = (t for t in sides if id(t) not in names)
    return wanted if x.ndim > sides[0].ndim and all(map(tracer.is_constant, rest)) else []


def _element_by_element(tracer: Tracer, affine: Affine) -> Tensor:
    """The function without its parameters, and then these: each a function that is traced like any other."""
    normal = affine.run(affine.x, None, None)
    weight, bias = (_along_channels(tracer, t, normal, affine.channels) for t in (affine.weight, affine.bias))
    if weight is not None and bias is not None:
        result = tracer.trace(torch.addcmul, bias, normal, weight)
    elif weight is not None:
        result = tracer.trace(torch.mul, normal, weight)
    else:
        result = tracer.trace(torch.add, normal, bias)
    converted: Tensor = result.to(normal.dtype)  # a float32 norm in a bfloat16 model gives bfloat16
    return converted


def _along_channels(tracer: Tracer, vector: Tensor | None, result: Tensor, channels: int | None) -> Tensor | None:
    if vector is None or channels is None:
        return vector
    viewed: Tensor = tracer.trace(torch.Tensor.view, vector, (len(vector), *[1] * (result.ndim - 1 - channels)))
    return viewed


def _masked(tracer: Tracer, masked: Masked) -> Tensor:
    """A function part of whose result has no gradient, which ``vmap`` would give one."""
    result = tracer.trace(masked.func, *masked.args)
    return torch.where(masked.constant, result.detach(), result)
