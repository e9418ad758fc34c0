"""Every use of a parameter in a forward pass, as it happens.

A ``TorchFunctionMode`` sees each call of a torch function. Where one combines parameters with the examples, it is
handled in one of two ways: as a *product* (linear layers, embeddings), whose per-example gradient is a sum of outer
products; or with *copies* of the parameter, one per example, handed to the function by broadcasting or by ``vmap``.
What is computed from parameters alone stays shared until it meets the examples. So nothing depends on the class of a
module, tied parameters are one parameter used twice, and a use that cannot be handled is seen when it happens.
No module or parameter is touched.
"""

from __future__ import annotations

import abc
import itertools
import operator
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltasam.core.sharding import is_sharded
from deltasam.core.structure import Structure
from deltasam.per_example import parameter_values as shared
from deltasam.per_example.composed import COMPOSED
from deltasam.per_example.functions import Function, function_of
from deltasam.per_example.parameter_values import Shared, map_tensors, tensors_given, tensors_in, tensors_of_call
from deltasam.per_example.rules import (
    AFFINES,
    ELEMENTWISE,
    MASKED,
    PRODUCTS,
    REFUSALS,
    Affine,
    Lookup,
    Masked,
    Product,
    is_parameter,
)
from deltasam.per_example.writes import out_of_place, values_of_owners, written

_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError)
HIDDEN = (
    "has a gradient that its uses do not explain: a function that PyTorch does not show uses it (a custom "
    "autograd.Function, a compiled or scripted one, a backward inside the backward), or a hook changes it"
)
_NO_AXIS = "; where a loss is the sum of several terms, return one loss per example"


class ParameterUses(TorchFunctionMode, abc.ABC):
    """Hands every use of some parameters by the examples to a subclass.

    Args:
        structure: Of the model; its buffers and its other parameters are constants.
        parameters: Those whose uses matter, by name. A sharded one gives its place to the whole one that is used.
    """

    def __init__(self, structure: Structure, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.structure, self._model, self._entered = structure, structure.model, 0
        self.know(parameters)

    def know(self, parameters: dict[str, nn.Parameter]) -> None:
        """Look for uses of these parameters; what was computed from others is forgotten."""
        structure = self.structure
        whole = [p for p in structure.parameters.values() if not (structure.sharded and is_sharded(p))]
        self.names = {id(p): name for name, p in parameters.items()}
        self._wanted = parameters
        self._shared: dict[int, Shared] = {id(p): shared.parameter(p) for p in whole if id(p) in self.names}
        self._constants: dict[int, Tensor] = {id(p): p for p in whole if id(p) not in self.names}
        self._constants.update((id(b), b) for b in structure.buffers)
        self._given: set[int] = set()  # with how many rows the model was called
        self._known = set(map(id, structure.parameters.values())) if structure.sharded else None

    def __enter__(self) -> ParameterUses:
        if not self._entered:
            self._hook = self._model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        self._entered += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered -= 1
        if not self._entered:
            self._hook.remove()
        super().__exit__(*error)

    def _meet(self, parameters: list[nn.Parameter]) -> None:
        """Sharded parameters are whole in a forward pass, as tensors that the model did not have before."""
        for p in parameters:
            name = next((n for n, q in self._model.named_parameters(remove_duplicate=False) if q is p), None)
            if name is None or self._known is None:
                continue
            self._known.add(id(p))
            if name in self._wanted:
                self.names[id(p)], self._shared[id(p)] = name, shared.parameter(p)
                self._wanted[name] = p
            else:
                self._constants[id(p)] = p

    def _see_inputs(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """What the model is given for every example is no constant, even if the closure has just made it."""
        tensors = [t for t in tensors_given((args, kwargs)) if t.ndim]
        for t in tensors:  # the first one may have one row for all examples
            if len(t) == len(tensors[0]) or (len(tensors[0]) == 1 and t.ndim > 1):
                self._constants.pop(id(t), None)
        self._given.update(len(t) for t in tensors[:1])

    @abc.abstractmethod
    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The parameter for every example [count, *shape]."""

    @abc.abstractmethod
    def product(self, run: Callable[[], Tensor], product: Product) -> Tensor:
        """The output of a product of the examples with parameters; ``run`` computes it as usual."""

    @abc.abstractmethod
    def affine(self, affine: Affine) -> Tensor:
        """The output of a function that multiplies the examples with parameters, or adds these, element by element."""

    @abc.abstractmethod
    def refuse(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """These parameters are used in a way that cannot be handled."""

    @abc.abstractmethod
    def spoil(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """The same, and no later pass would find them as the first one did."""

    def accept(self, result: Tensor, plain: Callable[[], Tensor]) -> bool:
        """Whether what ``vmap`` made of a function is what the function computes; override to look."""
        return True

    def met(self, parameters: Iterable[nn.Parameter], result: Any) -> None:
        """The examples have met these parameters, with this result; override to look at it."""

    def sees(self, device: str) -> None:
        """A function of parameters is about to be called; override to look at the circumstances."""

    def moved(self, function: Function, args: Any, kwargs: Any, result: Any) -> None:
        """A function of the examples alone was called; override to see which of their rows it picked."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
        known, of_examples = self._constants, False
        for t in tensors:
            if id(t) in self._shared:
                return self._with_parameters(func, function, tensors, args, kwargs)
            of_examples = of_examples or id(t) not in known
        if of_examples and function.is_like:
            of_examples = id(tensors[0]) not in known
        result = func(*args, **kwargs)
        if of_examples:  # what they were written into is no constant any more
            known.pop(id(tensors[0]) if result is None else id(result), None)
            self.moved(function, args, kwargs, result)
        else:
            self._note_constants(result)
        return result

    def _with_parameters(self, func: Any, function: Function, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        name = function.name
        if torch._C._functorch.peek_interpreter_stack() is not None:
            reason = "is used inside a transform of torch.func, where no rows are seen"
            self.refuse(self._parameters(args, kwargs), reason)
            return func(*args, **kwargs)
        self.sees(tensors[0].device.type)
        out, reader = kwargs.get("out"), PRODUCTS.get(func)
        refusal = REFUSALS.get(func) or REFUSALS.get(name)
        if refusal is None and out is None:  # nothing else holds for a linear layer, or for a normalisation
            if reader and (product := _read(reader, args, kwargs)):
                if self._is_plain(product) and not self._is_constant(product.x):
                    return self._product(lambda: func(*args, **kwargs), product)
            elif (by_element := AFFINES.get(func) or ELEMENTWISE.get(func)) is not None:
                affine = _read(by_element, args, kwargs)
                if affine is not None and (parameters := self._of_affine(affine)):
                    result = self.affine(affine)
                    self.met(parameters, result)
                    return result
        if out is not None and function.takes_out:
            return self._into(out, func, args, {key: value for key, value in kwargs.items() if key != "out"})
        if function.is_like and len(tensors) > 1:
            return self.__torch_function__(torch.Tensor.to, (), (tensors[0], tensors[1].device, tensors[1].dtype))
        if function.is_new:
            return self._constant(func(*args, **kwargs))
        if any(self._shared[id(t)].is_of_another for t in tensors if id(t) in self._shared):
            self.refuse(self._parameters(args, kwargs), HIDDEN)
            result = func(*args, **kwargs)
            if all(id(t) in self._shared or self._is_constant(t) for t in tensors):
                self._note_constants(result)  # of no example, whatever its shape
            return result
        if function.reads or self._stale(tensors):
            why = "is read as a number" if function.reads else "or what was computed from it is written into"
            self.refuse(self._parameters(args, kwargs), f"{why}, which copies for each example cannot follow")
            return func(*args, **kwargs)
        fixed = all(id(t) in self._shared or self._is_constant(t) for t in tensors)
        if name == "__setitem__" or (function.in_place and (id(args[0]) in self._shared or fixed)):
            return self._write(func, name, tensors, args, kwargs, fixed=fixed)
        if name == "__set__" and func == _SET_DATA:
            self.spoil(self._parameters(args, kwargs), "it is put in the place of another tensor's values")
            return func(*args, **kwargs)
        if (parts := COMPOSED.get(name)) and (result := self._by_parts(parts, args, kwargs)) is not None:
            return result
        if refusal and (against := refusal(*args, **kwargs)):
            self.refuse(self._parameters(args, kwargs), against)
            return func(*args, **kwargs)
        if fixed:
            return self._without_examples(func, function, args, kwargs)
        if reader and (product := _read(reader, args, kwargs)) and self._is_plain(product):
            return self._product(lambda: func(*args, **kwargs), product)
        if (normalised := AFFINES.get(func)) and (affine := _read(normalised, args, kwargs)):
            return self._affine(affine)
        if (splitter := MASKED.get(func)) and (masked := _read(splitter, args, kwargs)):
            return self._masked(masked)
        if function.puts_together and _first_axis(args, kwargs):
            self.refuse(self._parameters(args, kwargs), f"{name} puts it among the rows of the examples")
            return func(*args, **kwargs)
        if function.broadcasts or (function.multiplies_matrices and min(t.ndim for t in tensors) > 2):
            return self._broadcast(func, function, args, kwargs)
        return self._vmap(func, function, args, kwargs)

    def _stale(self, tensors: list[Tensor]) -> bool:
        """Whether a value that was computed from parameters was written into behind our back."""
        return any(self._shared[id(t)].stale for t in tensors if id(t) in self._shared)

    def _is_plain(self, product: Product) -> bool:
        """Whether weight and bias are parameters as they are, and the input belongs to the examples."""
        weight, bias = self._shared.get(id(product.weight)), self._shared.get(id(product.bias))
        plain = (weight is None or weight.is_parameter) and (bias is None or bias.is_parameter)
        return plain and id(product.x) not in self._shared

    def _product(self, run: Callable[[], Tensor], product: Product) -> Tensor:
        result = self.product(run, product)
        self.met(product.parameters, result)
        return result

    def _into(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """A function that writes its result into a tensor: the result first, as without it."""
        result = self.__torch_function__(func, (), args, kwargs)
        if not isinstance(out, Tensor) or id(result) in self._shared or id(out) in self._shared:
            self.refuse(self._parameters(args, kwargs), f"{getattr(func, '__name__', func)} writes it into out=")
            return func(*args, **kwargs, out=out)
        self._constants.pop(id(out), None)
        return out.resize_(result.shape).copy_(result)

    def _constant(self, result: Any) -> Any:
        self._constants[id(result)] = result
        return result

    def _note_constants(self, result: Any) -> None:
        """What was made of constants alone is constant."""
        results = result if isinstance(result, (list, tuple)) else (result,)
        self._constants.update((id(t), t) for t in results if isinstance(t, Tensor))

    # What is computed from parameters and constants is kept until examples meet it.

    def _without_examples(self, func: Any, function: Function, args: Any, kwargs: Any) -> Any:
        name = function.name
        found = [t for t in tensors_in((args, kwargs)) if id(t) in self._shared]
        if function.drops is True and found[0] is args[0]:
            return self._dropout(func, args, kwargs)
        if function.counts or (name == "__getitem__" and self._picks_by_shared_mask(args)):
            self.refuse(self._parameters(args, kwargs), f"{name} gives as many values as its values say")
            return func(*args, **kwargs)
        if function.drops == "alpha":
            self.refuse(self._parameters(args, kwargs), f"{name} draws random numbers for it, not for the examples")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if function.spreads and result.ndim == found[0].ndim > 0 and len(found[0]) == 1 < len(result):
            # To the examples, it seems; and if not, the check will say so.
            if name != "repeat":
                return self._with_copies(func, name, args, kwargs, len(result), result.ndim)
            if result.shape[1:] == found[0].shape[1:]:
                return self._repeat(found[0], len(result))
        reader = PRODUCTS.get(func) if self._shared[id(found[0])].is_parameter else None
        product = _read(reader, args, kwargs) if reader else None
        self._keep(result, func, args, kwargs, product if isinstance(product, Lookup) else None)
        return result

    def _picks_by_shared_mask(self, args: Any) -> bool:
        return any(id(t) in self._shared and t.dtype == torch.bool for t in tensors_in(args[1:]))

    def _dropout(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A product with a mask that is drawn once and is the same for all copies."""
        value, inplace = args[0], kwargs.get("inplace", len(args) > 3 and args[3])
        mask = func(torch.ones_like(value), *args[1:], **kwargs)
        times = torch.Tensor.mul_ if inplace else torch.mul
        return self.__torch_function__(times, (), (value, self._constants.setdefault(id(mask), mask)))

    # Writing in place.

    def _write(self, func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: Any, *, fixed: bool) -> Any:
        """A function that changes its first argument, which is shared, or is given what is."""
        target, *others = args
        before = {id(t): self._shared[id(t)] for t in tensors if id(t) in self._shared}
        parameters = self._parameters(args, kwargs)
        memory = _memory(target)
        if any(_memory(p) == memory for p in parameters):  # .data, .detach()
            self.spoil(parameters, "the forward pass writes into its memory")
            return func(*args, **kwargs)
        if name == "__setitem__" and any(id(t) in before for t in tensors_in(others[0])):
            self.refuse(parameters, "the places that the forward pass writes into depend on it")
            return func(*args, **kwargs)
        if not fixed and id(target) in before:
            return self._write_into_rows(func, name, args, kwargs)
        if not fixed:
            return self._write_among_examples(*args)
        again = written if name == "__setitem__" else out_of_place(func, name, is_mapped=id(target) in before)
        source = target if id(target) in before else target.detach().clone()  # a constant, also to a view of it
        result = func(*args, **kwargs)
        self._constants.pop(id(target), None)
        self._shared[id(target)] = shared.computed(target, again, (source, *others), kwargs, before)
        return result

    def _write_into_rows(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Examples are written into a shared value, which has a row for each of them from now on."""
        try:
            rows = self._rows(self._shared[id(args[0])])
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            self.refuse(self._parameters(args, kwargs), f"{name} writes examples into it ({error})")
            return func(*args, **kwargs)
        args[0].copy_(rows)
        del self._shared[id(args[0])]
        return self.__torch_function__(func, (), args, kwargs)

    def _write_among_examples(self, target: Tensor, index: Any, value: Tensor) -> None:
        """A shared value is written into a tensor of the examples: for each its own."""
        parameters = self._shared[id(value)].parameters
        try:
            copies = self._spread(self._shared[id(value)], len(target), value.ndim + 1)
            own = values_of_owners(target, index, copies)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            self.refuse(parameters, f"is written among the examples in a way that copies cannot follow ({error})")
            own = value
        target[index] = own
        self.met(parameters, target)

    def _repeat(self, value: Tensor, count: int) -> Tensor:
        found = self._shared[id(value)]
        return found.copies({id(p): self.copies(p, count) for p in found.parameters}).flatten(0, 1)

    def _keep(self, result: Any, func: Any, args: Any, kwargs: Any, lookup: Product | None = None) -> None:
        if isinstance(result, Tensor):
            value = shared.computed(result, func, args, kwargs, self._shared, lookup=lookup)
            self._shared.setdefault(id(result), value)
        elif isinstance(result, (list, tuple)):
            call = shared.new_call()
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    self._shared[id(item)] = shared.computed(item, func, args, kwargs, self._shared, item=i, call=call)

    def _by_parts(self, parts: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function that consists of others, each of which is seen; None if it cannot be written so."""
        with self:
            return _read(parts, args, kwargs)

    # Uses with copies: one value per example, broadcast or mapped.

    def _affine(self, affine: Affine) -> Tensor:
        normal = affine.run(affine.x, None, None)
        weight, bias = (self._along(t, normal, affine.channels) for t in (affine.weight, affine.bias))
        if weight is not None and bias is not None:
            result = self.__torch_function__(torch.addcmul, (), (bias, normal, weight))
        elif weight is not None:
            result = self.__torch_function__(torch.mul, (), (normal, weight))
        else:
            result = self.__torch_function__(torch.add, (), (normal, bias))
        return result.to(normal.dtype)  # a float32 norm in a bfloat16 model gives bfloat16

    def _of_affine(self, affine: Affine) -> list[nn.Parameter]:
        """The wanted parameters in it, if all it consists of are these, constants, and examples that have a graph."""
        x = affine.x
        if affine.channels is not None or affine.weight is affine.bias or not x.is_contiguous():
            return []  # what comes out of others lies in memory as the function decides
        if not x.requires_grad or not self._of_examples(x):
            return []
        sides = [t for t in (affine.weight, affine.bias) if t is not None]
        wanted = [t for t in sides if is_parameter(t) and id(t) in self.names]
        rest = (t for t in sides if id(t) not in self.names)
        return wanted if x.ndim > sides[0].ndim and all(map(self._is_constant, rest)) else []

    def _masked(self, masked: Masked) -> Tensor:
        """A function part of whose result has no gradient, which ``vmap`` would give one."""
        result = self.__torch_function__(masked.func, (), masked.args)
        return torch.where(masked.constant, result.detach(), result)

    def _along(self, vector: Tensor | None, result: Tensor, channels: int | None) -> Tensor | None:
        if vector is None or channels is None:
            return vector
        shape = (len(vector), *[1] * (result.ndim - 1 - channels))
        return self.__torch_function__(torch.Tensor.view, (), (vector, shape))

    def _broadcast(self, func: Any, function: Function, args: Any, kwargs: Any) -> Any:
        name = function.name
        tensors = tensors_in((args, kwargs))
        ndim = max(t.ndim for t in tensors)
        examples = [t for t in tensors if id(t) not in self._shared and t.ndim == ndim > 0]
        count = max((len(t) for t in examples), default=0)
        found = [t for t in tensors if id(t) in self._shared]
        if not examples or (count == 1 and not any(t.requires_grad for t in examples) and _leads(found, ndim)):
            return self._not_yet(func, name, args, kwargs)
        for value in found:
            if value.ndim == ndim and len(value) != 1:
                return self._aligned(value, func, name, args, kwargs)
        return self._with_copies(func, name, args, kwargs, count, ndim)

    def _not_yet(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """No axis of examples is in sight: masks and the like are constants here."""
        others = [t for t in tensors_in((args, kwargs)) if id(t) not in self._shared]
        if not any(t.requires_grad for t in others):
            result = func(*args, **kwargs)
            self._keep(result, func, args, kwargs)
            return result
        if function_of(func).adds and len(self._given) == 1:
            return self._term(func, name, args, kwargs)
        self.refuse(self._parameters(args, kwargs), f"{name} has no axis of examples{_NO_AXIS}")
        return func(*args, **kwargs)

    def _term(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A term of parameters alone in a loss of all examples: its mean over the examples' copies."""
        (count,) = self._given
        try:
            copies = {id(p): self.copies(p, count) for p in self._parameters(args, kwargs)}
            found = {id(t): self._shared[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self._shared}
            means = {key: value.copies(copies).mean(0) for key, value in found.items()}
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            self.refuse(self._parameters(args, kwargs), f"{name} meets a value that copies do not make: {error}")
            return func(*args, **kwargs)
        return func(*map_tensors(lambda t: means.get(id(t), t), args), **kwargs)

    def _aligned(self, value: Tensor, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """The shared value has a row of its own for every example: ids or a state that were made up for each, say."""
        return self._with_rows([value], func, name, args, kwargs)

    def _with_rows(self, values: list[Tensor], func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Call a function with values whose row i is that of example i, made of its copies of the parameters."""
        try:
            # Constants among them: the same as tensors of the examples.
            rows = {id(t): self._rows(self._shared[id(t)]) if id(t) in self._shared else t.view_as(t) for t in values}
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            self.refuse(self._parameters(args, kwargs), f"{name} meets a value that copies do not make: {error}")
            return func(*args, **kwargs)
        args, kwargs = map_tensors(lambda t: rows.get(id(t), t), (args, kwargs))
        return self.__torch_function__(func, (), args, kwargs)

    def _rows(self, value: Shared) -> Tensor:
        """A shared value with as many rows as there are examples [B, ...]: of each the row of its own copy."""
        if value.lookup is not None:
            return self._product(lambda: value.value.view_as(value.value), value.lookup)
        count = len(value.value)
        own = torch.arange(count, device=value.value.device)
        return value.copies({id(p): self.copies(p, count) for p in value.parameters})[own, own]

    def _with_copies(self, func: Any, name: str, args: Any, kwargs: Any, count: int, ndim: int) -> Any:
        try:
            spread = {
                id(t): self._spread(self._shared[id(t)], count, ndim)
                for t in tensors_in((args, kwargs))
                if id(t) in self._shared
            }
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            self.refuse(self._parameters(args, kwargs), f"{name} meets a value that copies do not make: {error}")
            return func(*args, **kwargs)
        parameters = self._parameters(args, kwargs)
        args, kwargs = map_tensors(lambda t: spread.get(id(t), t), (args, kwargs))
        result = func(*args, **kwargs)
        self.met(parameters, result)
        return result

    def _spread(self, value: Shared, count: int, ndim: int) -> Tensor:
        """A shared value for every example [count, ...], with as many axes as what it meets."""
        if value.lookup is not None:
            ids, rows = value.lookup.x, value.value
            if rows.ndim < ndim:
                ids, rows = (t.view(*[1] * (ndim - rows.ndim), *t.shape) for t in (ids, rows))
            ids, rows = (t.expand(count, *t.shape[1:]) for t in (ids, rows))
            return self._product(lambda: rows, replace(value.lookup, x=ids))
        copies = value.copies({id(p): self.copies(p, count) for p in value.parameters})
        if value.value.ndim == ndim:
            return copies.flatten(0, 1)
        return copies.view(count, *[1] * (ndim - copies.ndim), *value.value.shape)

    def _vmap(self, func: Any, function: Function, args: Any, kwargs: Any) -> Any:
        """Any other function, mapped over examples and their copies of the parameters."""
        name, parameters = function.name, self._parameters(args, kwargs)
        tensors = tensors_in((args, kwargs))
        count = next((len(t) for t in tensors if self._of_examples(t) and t.ndim), None)
        if count is None:
            self.refuse(parameters, f"{name} has no axis of examples")
            return func(*args, **kwargs)
        found = {id(t): self._shared[id(t)] for t in tensors if id(t) in self._shared}
        rows = {id(t): _plainly_laid(t) for t in tensors if self._of_examples(t) and t.ndim and len(t) == count}
        device = next(iter(rows.values())).device.type
        lower = function.lowered and torch.is_autocast_enabled(device)

        def one(values: dict[int, Tensor], row: dict[int, Tensor]) -> Tensor:
            def pick(t: Tensor) -> Tensor:
                if id(t) in found:
                    t = found[id(t)].function(values)
                elif id(t) in row:
                    t = row[id(t)][None]
                return t.to(torch.get_autocast_dtype(device)) if lower and t.dtype == torch.float32 else t

            result = func(*map_tensors(pick, args), **map_tensors(pick, kwargs))
            if result.ndim and len(result) != 1:
                raise ValueError("its result does not have the examples as the first axis")
            return result.squeeze(0)

        try:
            copies = {id(p): self.copies(p, count) for p in parameters}
            with torch.autocast(device, enabled=False) if lower else nullcontext():
                result = torch.func.vmap(one)(copies, rows)
            if self.accept(result, lambda: func(*args, **kwargs)):
                self.met(parameters, result)
                return result
            reason = f"{name} does not treat the examples one by one"
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            others = [t for t in tensors if id(t) not in rows and t.ndim and len(t) == count and not is_parameter(t)]
            if others:
                return self._with_rows(others, func, name, args, kwargs)
            reason = f"{name} cannot be run with a copy for each example ({str(error).partition(chr(10))[0]})"
        self.refuse(parameters, reason)
        return func(*args, **kwargs)

    def _of_examples(self, t: Tensor) -> bool:
        return id(t) not in self._shared and not self._is_constant(t)

    def _is_constant(self, t: Tensor) -> bool:
        """Whether it is the same for all examples, also if we have not seen where it comes from."""
        if id(t) in self._constants or is_parameter(t):
            return True
        single = not t.requires_grad and t.ndim > 0 and len(t) == 1
        return single and bool(self._given) and 1 not in self._given

    def _parameters(self, args: Any, kwargs: Any) -> tuple[nn.Parameter, ...]:
        return shared.parameters_of(args, kwargs, self._shared)


def _read(reader: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What a rule makes of a call; None where the call has arguments that the rule does not know."""
    try:
        return reader(*args, **kwargs)
    except TypeError:
        return None


def _plainly_laid(t: Tensor) -> Tensor:
    """A contiguous tensor with strides that are so too where an axis is 1 long: convolutions take others for NHWC."""
    expected = tuple(itertools.accumulate((1, *t.shape[:0:-1]), operator.mul))[::-1]
    return t.clone(memory_format=torch.contiguous_format) if t.is_contiguous() and t.stride() != expected else t


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _first_axis(args: Any, kwargs: Any) -> bool:
    """Whether tensors are put one after the other along their first axis."""
    tensors, dim = tensors_in((args, kwargs)), kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    return not isinstance(dim, int) or dim % max(tensors[0].ndim, 1) == 0


def _leads(found: list[Tensor], ndim: int) -> bool:
    """Whether one of the shared values has as many axes as what it meets."""
    return any(t.ndim == ndim for t in found)
