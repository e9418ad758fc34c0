"""What a handler knows: the call, and what the forward pass has made of the parameters so far."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltasam.core.sharding import is_sharded
from deltasam.core.structure import Structure
from deltasam.per_example.functions import Args, Function, Kwargs, TorchFunction
from deltasam.per_example.parameter_values import ParameterExpr, computed, map_tensors, new_call, of_parameter
from deltasam.per_example.rules import Affine, MatmulUse, is_parameter

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError)
"""How torch functions refuse arguments."""


@dataclass(slots=True, eq=False)  # not frozen: one is made at every use, and that takes four times as long
class Call:
    """One call of a torch function.

    Attributes:
        func: What was called.
        function: What is known of it.
        args: Its arguments.
        kwargs: Its keyword arguments.
        tensors: Those among its arguments, in lists, tuples and dictionaries too.
    """

    func: TorchFunction
    function: Function
    args: Args
    kwargs: Kwargs
    tensors: list[Tensor]

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.name

    def run(self) -> Any:
        """What the function returns, with parameters as they are."""
        return self.func(*self.args, **self.kwargs)

    def with_tensors(self, images: Mapping[int, Tensor]) -> tuple[Args, Kwargs]:
        """The arguments with some tensors, by id, replaced."""
        args: Args
        args, kwargs = map_tensors(lambda t: images.get(id(t), t), (self.args, self.kwargs))
        return args, kwargs


class Tracer(TorchFunctionMode, abc.ABC):
    """What is known of the tensors of a forward pass, and what is to be done where parameters meet the examples.

    Args:
        structure: Of the model; its buffers and its other parameters are constants.
        parameters: Those whose uses matter, by name. A sharded one gives its place to the whole one that is used.

    Attributes:
        names: Of the parameters whose uses matter, by id.
        shared: What depends on these and on no example, by the id of its tensor.
        constants: What depends on neither, by id.
        given: With how many rows the model was called.
    """

    def __init__(self, structure: Structure, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.structure, self._model = structure, structure.model
        self.know(parameters)

    def know(self, parameters: dict[str, nn.Parameter]) -> None:
        """Look for uses of these parameters; what was computed from others is forgotten."""
        structure = self.structure
        whole = [p for p in structure.parameters.values() if not (structure.sharded and is_sharded(p))]
        self.names = {id(p): name for name, p in parameters.items()}
        self._wanted = parameters
        self.shared: dict[int, ParameterExpr] = {id(p): of_parameter(p) for p in whole if id(p) in self.names}
        self.constants: dict[int, Tensor] = {id(p): p for p in whole if id(p) not in self.names}
        self.constants.update((id(b), b) for b in structure.buffers)
        self.given: set[int] = set()
        self._known = set(map(id, structure.parameters.values())) if structure.sharded else None

    # What a pass makes of the uses.

    @abc.abstractmethod
    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The parameter for every example [count, *shape]."""

    @abc.abstractmethod
    def product(self, run: Callable[[], Tensor], product: MatmulUse) -> Tensor:
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

    def met(self, parameters: Iterable[nn.Parameter], result: object) -> None:
        """The examples have met these parameters, with this result; override to look at it."""

    def sees(self, device: str) -> None:
        """A function of parameters is about to be called; override to look at the circumstances."""

    def moved(self, function: Function, args: Args, kwargs: Kwargs, result: object) -> None:
        """A function of the examples alone was called; override to see which of their rows it picked."""

    # What handlers ask, and note.

    def trace(self, func: TorchFunction, *args: object, **kwargs: object) -> Any:
        """Call a function as if the forward pass had called it."""
        return self.__torch_function__(func, (), args, kwargs)

    def run_refused(self, call: Call, reason: str) -> Any:
        """Refuse the parameters in a call, and go on with its plain result."""
        self.refuse(self.parameters_in(call.tensors), reason)
        return call.run()

    def run_product(self, run: Callable[[], Tensor], product: MatmulUse) -> Tensor:
        """The output of a product, which is the examples' meeting with its parameters."""
        result = self.product(run, product)
        self.met(product.parameters, result)
        return result

    def shared_in(self, tensors: Iterable[Tensor]) -> dict[int, ParameterExpr]:
        """Those of some tensors that depend on parameters and on no example, by id."""
        shared = self.shared
        return {id(t): shared[id(t)] for t in tensors if id(t) in shared}

    def parameters_in(self, tensors: Iterable[Tensor]) -> tuple[nn.Parameter, ...]:
        """The parameters that these depend on, each once."""
        return tuple({id(p): p for value in self.shared_in(tensors).values() for p in value.parameters}.values())

    def copies_of(self, parameters: Sequence[nn.Parameter], count: int) -> dict[int, Tensor]:
        """Several parameters for every example, by id."""
        return {id(p): self.copies(p, count) for p in parameters}

    def is_constant(self, t: Tensor) -> bool:
        """Whether it is the same for all examples, also if we have not seen where it comes from."""
        if id(t) in self.constants or is_parameter(t):
            return True
        single = not t.requires_grad and t.ndim > 0 and len(t) == 1
        return single and bool(self.given) and 1 not in self.given

    def is_fixed(self, tensors: Iterable[Tensor]) -> bool:
        """Whether none of them depends on the examples."""
        return all(id(t) in self.shared or self.is_constant(t) for t in tensors)

    def is_of_examples(self, t: Tensor) -> bool:
        """Whether it depends on the examples."""
        return id(t) not in self.shared and not self.is_constant(t)

    def note_constants(self, result: object) -> None:
        """What was made of constants alone is constant."""
        results = result if isinstance(result, (list, tuple)) else (result,)
        self.constants.update((id(t), t) for t in results if isinstance(t, Tensor))

    def keep(self, call: Call, result: object, lookup: MatmulUse | None = None) -> None:
        """What a call made of parameters and constants is shared, until the examples meet it.

        Args:
            call: The call.
            result: What it returned.
            lookup: See ``ParameterExpr``.
        """
        func, args, kwargs, shared = call.func, call.args, call.kwargs, self.shared
        if isinstance(result, Tensor):
            value = computed(result, func, args, kwargs, shared, lookup=lookup)
            shared.setdefault(id(result), value)
        elif isinstance(result, (list, tuple)):
            number = new_call()
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    shared[id(item)] = computed(item, func, args, kwargs, shared, item=i, call=number)


Handler = Callable[[Tracer, Call], Any]
"""What is done with a call; returns its result, or ``NotImplemented`` where another handler is to look at it."""


def refusing(reason: str) -> Handler:
    """A handler that refuses the parameters.

    Args:
        reason: Why; ``{name}`` is the name of the function.
    """

    def refuse(tracer: Tracer, call: Call) -> Any:
        return tracer.run_refused(call, reason.format(name=call.name))

    return refuse


def raise_if_out_of_memory(error: BaseException) -> None:
    """Let through what says nothing about a function's arguments."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
