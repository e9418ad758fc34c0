"""What one forward pass leaves behind: which outputs came from which parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from deltasam.core.closeness import close, rounding_of, rounding_of_tf32
from deltasam.core.structure import Structure
from deltasam.core.torch_internals.modes import unseen
from deltasam.core.torch_internals.tensors import base_of, number_of_hooks
from deltasam.core.vectors import HALF_DTYPES
from deltasam.per_example.functions import Args, Function, Kwargs
from deltasam.per_example.packed import refuse_signs, signs_of_packing
from deltasam.per_example.parameter_values import tensors_given, tensors_in
from deltasam.per_example.row_moves import RowMoves
from deltasam.per_example.rules import Affine, MatmulUse, is_parameter
from deltasam.per_example.tracing import ParameterTracer

_SMALL = 8

Edge = tuple[Node, int]
"""A place in a graph: a node, and which of its outputs."""


class NotCoveredError(RuntimeError):
    """Per-example gradients cannot be computed exactly; the message says of which parameters, why, and what to do.

    Attributes:
        specs: Methods that can do it, as text: for users who do not write Python.
    """

    def __init__(self, message: str, *, specs: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.specs = tuple(specs)


@dataclass(slots=True, eq=False)  # not frozen: one is made in every layer, and that takes four times as long
class Use:
    """One use of parameters by the examples; the gradient b is wanted where it came out.

    Attributes:
        output: The place in the graph where it came out.
        shape: Of what came out [B, ...]; B is a multiple of the number of examples.
        dtype: Of what came out.
        parameters: The trainable parameters that were used.
        product: What it was; None: the parameter's copies themselves came out.
        came_from: The places in the graph of what it was given beside parameters, if there are any.
    """

    output: GradientEdge
    shape: torch.Size
    dtype: torch.dtype
    parameters: tuple[nn.Parameter, ...]
    product: MatmulUse | Affine | None = None
    came_from: tuple[Edge, ...] = ()

    @property
    def kind(self) -> str:
        """The rule it falls under."""
        return "copies" if self.product is None else self.product.kind


class Record(ParameterTracer):
    """The uses of a model's trainable parameters in one forward pass.

    Args:
        structure: Of the model.
        skip: Names of parameters that are taken for constants.
        verify: What ``vmap`` makes of a function is compared with the function, to find the one that is wrong.
    """

    def __init__(self, structure: Structure, *, skip: Iterable[str] = (), verify: bool = False) -> None:
        self.parameters = _without(structure.trained, skip)
        super().__init__(structure, self.parameters)
        self._verify = verify
        self._open = False
        self._forget()

    def start_over(self, skip: Iterable[str] = ()) -> None:
        """Forget everything, for another pass in which other parameters are taken for constants."""
        self.parameters = _without(self.structure.trained, skip)
        self.know(self.parameters)
        self._forget()

    def _forget(self) -> None:
        self.uses: list[Use] = []
        self._number_of_uses = 0
        self.outside_graph: set[int] = set()
        self._signs: list[tuple[Tensor | bool, str]] = []
        self.refusals: dict[str, str] = {}
        self.spoiled: dict[str, str] = {}
        self._calls: set[frozenset[int]] = set()
        self.returned: list[Tensor] = []
        self._returned_rows: set[int] = set()
        self.hooked = False
        self.lowered: set[torch.dtype] = set()
        self._lengths: set[int] = set()
        self._moves = RowMoves()
        self._functions: list[object] = []
        self.graph = 0
        self.reached: tuple[bool, ...] = ()
        self.behaviour: tuple[object, ...] = ()
        self.losses = torch.empty(0)
        self.losses_apart = self.is_coarse = False

    # `with record:` alone runs functions as they were run when it was open, and notes nothing: with gradient
    # checkpointing a backward runs the forward again, and must find the same graph.

    @contextmanager
    def open(self) -> Iterator[None]:
        """Record the forward pass that is run inside."""
        self._open = True
        hook = self._model.register_forward_hook(self._see_outputs)
        try:
            with self:
                yield
        finally:
            self._open = False
            hook.remove()

    def computed_coarsely(self) -> bool:
        """Whether anything was computed in half precision, or may have been in TF32."""
        parameters = self.structure.parameters.values()
        dtypes = {self.losses.dtype, *(use.dtype for use in self.uses), *(p.dtype for p in parameters)}
        return not dtypes.isdisjoint(HALF_DTYPES) or (self.losses.is_cuda and rounding_of_tf32() > 0)

    def refuse_packed(self) -> None:
        """To be called after the forward, which should not wait for the device.

        Raises:
            ValueError: What the model was given are several examples in a row.
        """
        refuse_signs(self._signs, "a method of single examples")
        self._signs = []

    def examples(self, losses: Tensor) -> int:
        """The number of examples in the batch: as many as there are losses, or rows in what the model was given.

        Args:
            losses: One loss [], or one per example [n].

        Raises:
            NotCoveredError: It cannot be determined.
        """
        batches = self._batches()
        if len(batches) == 1 and losses.shape == (1,) and next(iter(batches)) > 1:
            raise NotCoveredError(
                f"the closure returned one loss in a tensor of one axis, but the model was called with "
                f"{next(iter(batches))} rows; return one loss per example, or a scalar (loss.squeeze())"
            )
        if losses.ndim:
            return len(losses)
        if len(batches) != 1:
            seen = f"was called with {sorted(batches)} of them" if batches else "itself was not called"
            raise NotCoveredError(
                f"how many examples there are cannot be determined from a scalar loss, because the model {seen}; "
                f"return one loss per example, for example F.cross_entropy(logits, labels, reduction='none')"
            )
        return next(iter(batches))

    def fingerprint(self, examples: int) -> tuple[object, ...]:
        """What was done with the parameters and the rows: equal for passes that a check of one of them holds for.

        Which parameters were used, in turn, how, with how many rows per example, and which of these uses the loss hangs
        on; with how many rows the model was called; which other functions were, and which are in the graph; and whose
        rows were picked by data.
        Lengths that are those of the input are equal.
        """

        def of_each(rows: int) -> object:
            ratio = rows / examples
            return "as long as the input" if ratio in self._lengths - {1} else ratio

        names = self.names
        uses = tuple((use.kind, of_each(use.shape[0]), *(names[id(p)] for p in use.parameters)) for use in self.uses)
        batches = frozenset(map(of_each, self._batches(examples)))
        hooks = tuple(map(number_of_hooks, self.parameters.values()))
        functions = tuple(self._functions), self.graph, self.reached
        return hooks, uses, batches, self.row_moves(examples), functions

    def row_moves(self, groups: int) -> tuple[object, ...]:
        """Whose rows were picked by data: equal where the same groups of examples had the same ones."""
        return self._moves.summary(groups, self._number_of_uses)

    def forget_graph(self) -> None:
        """Drop the uses, with what went into the layers, and what the model returned: a second pass needs neither."""
        self.uses, self.returned = [], []

    @property
    def outputs(self) -> list[GradientEdge]:
        """Where the gradient is wanted: the output of every use."""
        return [use.output for use in self.uses]

    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The parameter for every example [count, *shape]: all the same, with a gradient each."""
        copies = parameter.expand(count, *parameter.shape)
        self._add(copies, (parameter,), None)
        return copies

    def product(self, run: Callable[[], Tensor], product: MatmulUse) -> Tensor:
        """The output as usual, noted."""
        y = run()
        parameters, names = product.parameters, self.names
        if any(id(p) not in names for p in parameters):
            parameters = tuple(p for p in parameters if id(p) in names)
        self._add(y, parameters, product)
        return y

    def affine(self, affine: Affine) -> Tensor:
        """The output as usual, noted."""
        y = affine.run(affine.x, affine.weight, affine.bias)
        parameters = (p for p in (affine.weight, affine.bias) if isinstance(p, nn.Parameter) and id(p) in self.names)
        self._add(y, tuple(parameters), affine)
        return y

    def refuse(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """Note why these parameters are not covered."""
        for p in parameters:
            name = self.names[id(p)]
            self.refusals[name] = reason + _instead(self._model, name, p)

    def spoil(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """Note that nothing of this pass can be used."""
        self.spoiled.update((self.names[id(p)], reason) for p in parameters)

    def sees(self, device: str) -> None:
        """Note in which precision autocast computes."""
        if self._open and torch.is_autocast_enabled(device):
            self.lowered.add(torch.get_autocast_dtype(device))

    def met(self, parameters: Iterable[nn.Parameter], result: object) -> None:
        """Note the precision of the result: in a model of float64 some layers compute in float32."""
        if self._open and isinstance(result, Tensor) and result.is_floating_point():
            self.lowered.add(result.dtype)

    def moved(self, function: Function, args: Args, kwargs: Kwargs, result: object) -> None:
        """Note whose rows were picked, if by data, and whether gradients are looked at on their way."""
        if not self._open:
            return
        if function.name == "register_hook" and not _of_torch(args[1:]):
            self.hooked = True
        is_tensor = isinstance(result, Tensor)
        is_list = not is_tensor and isinstance(result, (list, tuple))
        if not is_tensor and function.name != "__setitem__" and not (is_list and tensors_in(result)):
            return  # nothing that examples could go on in
        # The names of all functions, with what they were told: dimensions, shifts and modes, not lengths.
        told = self._functions
        told.append(function.name)
        of_a_tensor = args and isinstance(args[0], Tensor)
        count = len(args[0]) if of_a_tensor and function.name == "roll" and args[0].ndim else 0
        for argument in args[1:] if of_a_tensor else args:
            told.append(None if isinstance(argument, Tensor) else _told(argument, count))
        for key, value in kwargs.items():
            told.append((key, _told(value, count)))
        self._moves.see(function.name, function.rows, args, kwargs, result, self._number_of_uses)

    def accept(self, result: Tensor, plain: Callable[[], Tensor]) -> bool:
        """Whether ``vmap`` made the same of it, to rounding."""
        if not self._verify:
            return True
        with torch.no_grad():
            expected = plain()
        tolerance = max(rounding_of(result.dtype), rounding_of_tf32() if result.is_cuda else 0.0)
        return result.dtype == expected.dtype and close(result, expected, tolerance)

    def _add(self, y: Tensor, parameters: tuple[nn.Parameter, ...], product: MatmulUse | Affine | None) -> None:
        if self._open and y.grad_fn is None:  # it was made under no_grad
            self.outside_graph.update(map(id, parameters))
        elif self._open:
            output = get_gradient_edge(_written_to(y, product))
            self.uses.append(Use(output, y.shape, y.dtype, parameters, product, _sources(product)))
            self._number_of_uses += 1

    def _see_inputs(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if self._open:
            with unseen():  # now, since a forward may change what it is given
                self._signs += signs_of_packing([args, kwargs])
        super()._see_inputs(module, args, kwargs)
        given = [t for t in tensors_given((args, kwargs)) if t.ndim]
        if given:
            self._calls.add(frozenset(len(t) for t in given))
            self._lengths |= set(given[0].shape[1:2])

    def _see_outputs(self, module: nn.Module, args: object, output: object) -> None:
        self.returned += tensors_of(output)
        self._returned_rows |= {len(t) for t in self.returned if t.ndim}

    def _batches(self, *known: int) -> set[int]:
        """With how many rows the model was called. Where its arguments differ, so many as are known, or came out."""
        known_ones = {*known} or self._returned_rows
        return {n for rows in self._calls for n in (rows & known_ones if len(rows) > 1 else rows) or rows}


def _written_to(y: Tensor, product: MatmulUse | Affine | None) -> Tensor:
    """Where the gradient of what came out of a use is seen, also if y is written into afterwards.

    A linear layer's output of three axes is a view of its rows: a write changes the place of the view in the graph, but
    not that of the rows.
    """
    if not isinstance(product, MatmulUse) or not product.x.is_floating_point():
        return y
    base = base_of(y)
    return base if base is not None and base.shape == (y.shape[:-1].numel(), y.shape[-1]) else y


def _sources(product: MatmulUse | Affine | None) -> tuple[Edge, ...]:
    """The places in the graph of what a product was given beside parameters."""
    if product is None:
        return ()
    x = product.x
    found: list[Edge] = [] if x.grad_fn is None else [(x.grad_fn, x.output_nr)]
    found += [
        (t.grad_fn, t.output_nr)
        for t in (product.weight, product.bias)
        if t is not None and t.grad_fn is not None and not is_parameter(t)
    ]
    return tuple(found)


def _told(argument: object, count: int) -> object:
    """What an argument says, where that is no length: small numbers, whether one is 0 or 1, a mode.

    Args:
        argument: Of a function.
        count: How many rows are shifted by it, if it is a shift: by so many is by none.
    """
    if isinstance(argument, (bool, str)):
        return argument
    if isinstance(argument, int):
        return argument if -_SMALL < argument < _SMALL else (count > 1 and argument % count == 0)
    if isinstance(argument, float):
        return argument if argument in (0.0, 1.0) else "number"
    if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
        return tuple(_told(a, count) for a in argument) if len(argument) < _SMALL else len(argument) > 0
    return None


def _of_torch(hooks: Sequence[Any]) -> bool:
    """Whether hooks are those of PyTorch itself (FSDP), which return no other gradient."""
    return bool(hooks) and all(str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)


def _without(parameters: dict[str, nn.Parameter], names: Iterable[str]) -> dict[str, nn.Parameter]:
    gone = set(names)
    return {name: p for name, p in parameters.items() if name not in gone}


def tensors_of(output: object) -> list[Tensor]:
    """The tensors with a graph in what a model returned."""
    return [t for t in tensors_given(output) if t.grad_fn is not None]


def _instead(model: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """What is exact in place of a use that is not, where the module that the parameter is of has a choice."""
    owner = model
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part, owner)
    how = getattr(getattr(owner, "config", None), "_experts_implementation", None)
    if how in (None, "batched_mm") or getattr(owner, "num_experts", None) != len(parameter):
        return ""
    return (
        f" (experts by {how!r}: the tokens of all examples are sorted by expert; "
        f"model.set_experts_implementation('batched_mm') is exact)"
    )
