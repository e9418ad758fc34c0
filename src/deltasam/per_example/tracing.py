"""Every use of a parameter in a forward pass, as it happens.

A ``TorchFunctionMode`` sees each call of a torch function. Where one combines parameters with the examples, it is
handled in one of two ways: as a *product* (linear layers, embeddings), whose per-example gradient is a sum of outer
products; or with *copies* of the parameter, one per example, handed to the function by broadcasting or by ``vmap``.
What is computed from parameters alone stays shared until it meets the examples. So nothing depends on the class of a
module, tied parameters are one parameter used twice, and a use that cannot be handled is seen when it happens.
No module or parameter is touched. Which function is handled how stands in ``handlers.table``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.utils.hooks import RemovableHandle

from deltasam.core.torch_internals.modes import in_functorch_transform
from deltasam.per_example.functions import Args, Kwargs, TorchFunction, function_of
from deltasam.per_example.handlers import products, writes
from deltasam.per_example.handlers.composed import COMPOSED
from deltasam.per_example.handlers.table import handling_of
from deltasam.per_example.handlers.tracer import Call, Tracer
from deltasam.per_example.parameter_values import of_parameter, tensors_given, tensors_of_call
from deltasam.per_example.rules import REFUSALS

HIDDEN = (
    "has a gradient that its uses do not explain: a function that PyTorch does not show uses it (a custom "
    "autograd.Function, a compiled or scripted one, a backward inside the backward), or a hook changes it"
)


class ParameterTracer(Tracer):
    """Hands every use of some parameters by the examples to a subclass; see ``Tracer``."""

    _entered = 0
    _hook: RemovableHandle

    def __enter__(self) -> Self:
        if not self._entered:
            self._hook = self._model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        self._entered += 1
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self._hook.remove()
        super().__exit__(kind, error, trace)

    def _meet(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sharded parameters are whole in a forward pass, as tensors that the model did not have before."""
        for p in parameters:
            name = next((n for n, q in self._model.named_parameters(remove_duplicate=False) if q is p), None)
            if name is None or self._known is None:
                continue
            self._known.add(id(p))
            if name in self._wanted:
                self.names[id(p)], self.shared[id(p)] = name, of_parameter(p)
                self._wanted[name] = p
            else:
                self.constants[id(p)] = p

    def _see_inputs(self, _: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """What the model is given for every example is no constant, even if the closure has just made it."""
        tensors = [t for t in tensors_given((args, kwargs)) if t.ndim]
        for t in tensors:  # the first one may have one row for all examples
            if len(t) == len(tensors[0]) or (len(tensors[0]) == 1 and t.ndim > 1):
                self.constants.pop(id(t), None)
        self.given.update(len(t) for t in tensors[:1])

    def __torch_function__(
        self, func: TorchFunction, types: Sequence[type], args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        """Called in place of every torch function."""
        function = function_of(func)
        if function.is_ignored:
            return func(*args, **(kwargs or {}))
        if function.backward is not None:
            with self:
                return function.backward(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        tensors = tensors_of_call(args, kwargs)
        if self._known is not None:
            self._meet([t for t in tensors if type(t) is nn.Parameter and id(t) not in self._known])
        known, of_examples = self.constants, False
        for t in tensors:
            if id(t) in self.shared:
                return self._with_parameters(Call(func, function, args, kwargs, tensors))
            of_examples = of_examples or id(t) not in known
        if of_examples and function.is_like:
            of_examples = id(tensors[0]) not in known
        result = func(*args, **kwargs)
        if of_examples:  # what they were written into is no constant any more
            known.pop(id(tensors[0]) if result is None else id(result), None)
            self.moved(function, args, kwargs, result)
        else:
            self.note_constants(result)
        return result

    def _with_parameters(self, call: Call) -> Any:
        """A function that is given parameters, or what was computed from them: the first way that is open to it."""
        func, function, name = call.func, call.function, call.name
        if in_functorch_transform():
            return self.run_refused(call, "is used inside a transform of torch.func, where no rows are seen")
        self.sees(call.tensors[0].device.type)
        writes_out = call.kwargs.get("out") is not None
        refusal = REFUSALS.get(func) or REFUSALS.get(name)
        if refusal is None and not writes_out:
            result = products.parameters_as_they_are(self, call)
            if result is not NotImplemented:
                return result
        if writes_out and function.takes_out:
            return writes.into(self, call)
        handling = handling_of(func, name)
        if handling.first is not None and (result := handling.first(self, call)) is not NotImplemented:
            return result
        values = self.shared_in(call.tensors).values()
        fixed = self.is_fixed(call.tensors)
        if any(value.is_of_another for value in values):
            result = self.run_refused(call, HIDDEN)
            if fixed:
                self.note_constants(result)  # of no example, whatever its shape
            return result
        if handling.reads:
            return self.run_refused(call, "is read as a number, which copies for each example cannot follow")
        if any(value.stale for value in values):
            return writes.refuse_unfollowed(self, call)
        if name == "__setitem__" or (function.in_place and (id(call.args[0]) in self.shared or fixed)):
            return writes.in_place(self, call)
        if (parts := COMPOSED.get(name)) and (result := self._by_parts(parts, call)) is not None:
            return result
        if refusal and (against := refusal(*call.args, **call.kwargs)):
            return self.run_refused(call, against)
        if fixed:
            return handling.alone(self, call)
        if (result := products.by_rule(self, call)) is not NotImplemented:
            return result
        return handling.with_examples(self, call)

    def _by_parts(self, parts: TorchFunction, call: Call) -> Any:
        """A function that consists of others, each of which is seen; None if it cannot be written so."""
        with self:
            return products.read(parts, call.args, call.kwargs)
