"""Values that are the same for all examples: parameters, and what is computed from parameters alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core.torch_internals.tensors import version_of
from deltasam.per_example.rules import MatmulUse

Values = dict[int, Any]
"""Parameters by id, and what was computed from them in one evaluation by the (negative) number of the call."""

_numbers = itertools.count(1)


def new_call() -> int:
    """A number for one call of a function."""
    return -next(_numbers)


@dataclass(slots=True, eq=False)
class ParameterExpr:
    """A value that depends on parameters but on no example; examples get copies of it once they meet it.

    Attributes:
        value: As the forward pass has it now.
        parameters: What it depends on.
        function: The value from the parameters' values, by id.
        lookup: Where it is nothing but rows of one parameter that were looked up: the product that says so.
        version: How often the value had been written into when it was computed; None where PyTorch does not count.
        requires_grad: Whether it was in the graph then.
    """

    value: Tensor
    parameters: tuple[nn.Parameter, ...]
    function: Callable[[Values], Tensor]
    lookup: MatmulUse | None = None
    version: int | None = None
    requires_grad: bool = True

    @property
    def stale(self) -> bool:
        """Whether a computed value was written into since: through a view, say, which is another tensor."""
        return not self.is_parameter and self.version != _version(self.value)

    @property
    def is_of_another(self) -> bool:
        """Whether a custom autograd.Function has put what its forward computed into the graph, as its own result."""
        return not self.is_parameter and self.value.requires_grad and not self.requires_grad

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter itself."""
        return self.value is self.parameters[0]

    def copies(self, parameters: Mapping[int, Tensor]) -> Tensor:
        """The value for every example [B, *shape] from copies of the parameters [B, *shape], by id."""
        if self.is_parameter:
            return parameters[id(self.value)]
        return torch.func.vmap(self.function)(dict(parameters))


def of_parameter(p: nn.Parameter) -> ParameterExpr:
    """A parameter as a shared value."""
    return ParameterExpr(p, (p,), lambda values: values[id(p)])


def computed(
    value: Tensor,
    function: Callable[..., Any],
    args: object,
    kwargs: object,
    found: Mapping[int, ParameterExpr],
    *,
    item: int | None = None,
    call: int | None = None,
    lookup: MatmulUse | None = None,
) -> ParameterExpr:
    """The result of a function of shared values and constants.

    Args:
        value: The result, or the item of it that is meant.
        function: What was called.
        args: Its arguments; the shared ones are found among them, in lists and tuples too.
        kwargs: Its keyword arguments.
        found: Shared values by the id of their tensor.
        item: Which item of the result is meant, if it is not the result itself.
        call: The number of the call, if several items of its result are kept: it is then done once for all of them.
        lookup: See ``ParameterExpr``.
    """
    tensors = tensors_in((args, kwargs))
    parameters = parameters_of(args, kwargs, found)
    # Only what is needed (all would be a cycle of references), in lists of its own.
    found = {id(t): found[id(t)] for t in tensors if id(t) in found}
    args, kwargs = map_tensors(lambda t: t, (args, kwargs))
    constants = [(t, _version(t)) for t in tensors if id(t) not in found]
    as_it_was = _mode(value.device.type)
    number = new_call() if call is None else call

    def again(values: Values) -> Tensor:
        def replace(argument: Tensor) -> Tensor:
            shared = found.get(id(argument))
            return argument if shared is None else shared.function(values)

        if number not in values:  # else every use of a use would compute it again
            if any(version != _version(t) for t, version in constants):
                raise RuntimeError("a tensor that it was computed with was changed in place afterwards")
            with as_it_was():
                values[number] = function(*map_tensors(replace, args), **map_tensors(replace, kwargs))
        return values[number] if item is None else values[number][item]

    return ParameterExpr(value, parameters, again, lookup, _version(value), value.requires_grad)


def _mode(device: str) -> Callable[[], Any]:
    """How values are computed now: with or without gradients, and in which precision."""
    gradients, lowered = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)

    @contextmanager
    def same() -> Iterator[None]:
        with torch.set_grad_enabled(gradients), torch.autocast(device, dtype, lowered, cache_enabled=False):
            yield

    return same


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written into; None where PyTorch does not count."""
    return None if tensor.is_inference() else version_of(tensor)


def parameters_of(args: object, kwargs: object, found: Mapping[int, ParameterExpr]) -> tuple[nn.Parameter, ...]:
    """The parameters that the shared values among the arguments depend on, each once."""
    parameters = {id(p): p for t in tensors_in((args, kwargs)) if id(t) in found for p in found[id(t)].parameters}
    return tuple(parameters.values())


def tensors_in(arguments: object) -> list[Tensor]:
    """The tensors among arguments, in lists, tuples and dictionaries too."""
    tensors: list[Tensor] = []
    _collect(arguments, tensors)
    return tensors


def tensors_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments of a call: most of them are no lists."""
    tensors: list[Tensor] = []
    for argument in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, (list, tuple, dict)):
            _collect(argument, tensors)
    return tensors


def tensors_given(arguments: object) -> list[Tensor]:
    """The tensors that a model is given or returns: in mappings of any kind and dataclasses as well, however deep."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, Mapping):
        arguments = list(arguments.values())
    elif is_dataclass(arguments) and not isinstance(arguments, type):
        arguments = [getattr(arguments, field.name, None) for field in fields(arguments)]
    elif not isinstance(arguments, (list, tuple)):
        return []
    return [t for argument in arguments for t in tensors_given(argument)]


def map_tensors(function: Callable[[Tensor], Tensor], arguments: object) -> Any:
    """The arguments with every tensor among them replaced by its image."""
    if isinstance(arguments, Tensor):
        return function(arguments)
    if isinstance(arguments, (list, tuple)) and type(arguments) in (list, tuple):
        return type(arguments)(map_tensors(function, a) for a in arguments)
    if type(arguments) is dict:
        return {key: map_tensors(function, a) for key, a in arguments.items()}
    return arguments


def _collect(arguments: object, tensors: list[Tensor]) -> None:
    if isinstance(arguments, Tensor):
        tensors.append(arguments)
    elif isinstance(arguments, (list, tuple)):
        for argument in arguments:
            _collect(argument, tensors)
    elif type(arguments) is dict:
        for argument in arguments.values():
            _collect(argument, tensors)
