"""What one forward pass leaves behind: which outputs came from which parameters and inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from deltasam.per_example.rules import Product
from deltasam.per_example.shared import tensors_in
from deltasam.per_example.uses import ParameterUses


class NotCoveredError(RuntimeError):
    """Per-example gradients cannot be had exactly; the message says of which parameters, why, and what to do.

    Attributes:
        specs: Methods that can do it, as text: for who does not write Python.
    """

    def __init__(self, message: str, *, specs: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.specs = tuple(specs)


@dataclass(frozen=True)
class Place:
    """Where a tensor came out, without the tensor.

    Attributes:
        output: The place in the graph.
        shape: Of what came out [B, ...]; B is a multiple of the number of examples.
        like: An empty tensor of its type, on its device.
    """

    output: GradientEdge
    shape: torch.Size
    like: Tensor


@dataclass(frozen=True)
class Use(Place):
    """One use of parameters by the examples; the gradient b is wanted where it came out.

    Attributes:
        parameters: The trainable parameters that were used.
        product: What kind of product it was; None: the parameter's copies themselves came out.
    """

    parameters: tuple[nn.Parameter, ...] = ()
    product: Product | None = None

    @property
    def kind(self) -> str:
        """The rule it falls under."""
        return "copies" if self.product is None else self.product.kind


class Record(ParameterUses):
    """The uses of a model's trainable parameters in one forward pass.

    Args:
        model: The model.
        skip: Names of parameters that are taken for constants.
        verify: What ``vmap`` makes of a function is compared with the function.
    """

    def __init__(self, model: nn.Module, *, skip: Iterable[str] = (), verify: bool = False) -> None:
        skipped = set(skip)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in skipped}
        super().__init__(model, self.parameters)
        self.uses: list[Use] = []
        self.refusals: dict[str, str] = {}
        self._verify = verify
        self._calls: set[frozenset[int]] = set()
        self._returned: list[Place] = []
        self._lengths: set[int] = set()
        self._open = False

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

    def examples(self, losses: Tensor) -> int:
        """The number of examples in the batch: as many as there are losses, or rows in what the model was given.

        Args:
            losses: One loss [], or one per example [n].

        Raises:
            NotCoveredError: It cannot be told.
        """
        if losses.ndim:
            return len(losses)
        batches = self._batches()
        if len(batches) != 1:
            seen = f"was called with {sorted(batches)} of them" if batches else "itself was not called"
            raise NotCoveredError(
                f"how many examples there are cannot be told from a scalar loss, because the model {seen}; "
                f"return one loss per example, for example F.cross_entropy(logits, labels, reduction='none')"
            )
        return next(iter(batches))

    def rows(self, examples: int) -> list[Place]:
        """What the model returned, where that is one row per example."""
        return [place for place in self._returned if place.shape[0] == examples]

    def layout(self, examples: int) -> frozenset[object]:
        """How many rows the uses have per example: the same for batches that are laid out in the same way."""
        rows = {use.shape[0] / examples for use in self.uses} | {b / examples for b in self._batches(examples)}
        return frozenset("as long as the input" if r in self._lengths - {1} else r for r in rows)

    @property
    def outputs(self) -> list[GradientEdge]:
        """Where the gradient is wanted: the output of every use."""
        return [use.output for use in self.uses]

    def leave_out(self, names: Iterable[str]) -> None:
        """Forget the uses of some parameters."""
        gone = {id(self.parameters.pop(name)) for name in names if name in self.parameters}
        kept = (replace(use, parameters=tuple(p for p in use.parameters if id(p) not in gone)) for use in self.uses)
        self.uses = [use for use in kept if use.parameters]
        for name in names:
            self.refusals.pop(name, None)

    def copies(self, parameter: nn.Parameter, count: int) -> Tensor:
        """The parameter for every example [count, *shape]: all the same, with a gradient each."""
        copies = parameter.expand(count, *parameter.shape)
        self._add(copies, (parameter,), None)
        return copies

    def product(self, run: Callable[[], Tensor], product: Product) -> Tensor:
        """The output as usual, noted."""
        y = run()
        sides = (product.weight, product.bias)
        self._add(y, tuple(p for p in sides if isinstance(p, nn.Parameter) and id(p) in self.names), product)
        return y

    def refuse(self, parameters: Iterable[nn.Parameter], reason: str) -> None:
        """Note why these parameters are not covered."""
        self.refusals.update((self.names[id(p)], reason) for p in parameters)

    def accept(self, result: Tensor, plain: Callable[[], Tensor]) -> bool:
        """Whether ``vmap`` made the same of it, to rounding."""
        if not self._verify:
            return True
        with torch.no_grad():
            expected = plain()
        tolerance = 100 * torch.finfo(expected.dtype).eps
        same_kind = result.shape == expected.shape and result.dtype == expected.dtype
        return same_kind and torch.allclose(result, expected, rtol=tolerance, atol=tolerance)

    def _add(self, y: Tensor, parameters: tuple[nn.Parameter, ...], product: Product | None) -> None:
        if self._open and y.grad_fn is not None:  # else it was made under no_grad
            self.uses.append(Use(*_place(y), parameters, product))

    def _see_inputs(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        super()._see_inputs(module, args, kwargs)
        given = [t for t in tensors_in((args, kwargs)) if t.ndim]
        if given:
            self._calls.add(frozenset(len(t) for t in given))
            self._lengths |= set(given[0].shape[1:2])

    def _see_outputs(self, module: nn.Module, args: Any, output: Any) -> None:
        if dataclasses.is_dataclass(output) or isinstance(output, Mapping):
            output = list((output if isinstance(output, Mapping) else vars(output)).values())
        self._returned += [Place(*_place(t)) for t in tensors_in(output) if t.ndim and t.grad_fn is not None]

    def _batches(self, *known: int) -> set[int]:
        """With how many rows the model was called. Where its arguments differ, so many as are known, or came out."""
        known_ones = {*known} or {place.shape[0] for place in self._returned}
        return {n for rows in self._calls for n in (rows & known_ones if len(rows) > 1 else rows) or rows}


def _place(y: Tensor) -> tuple[GradientEdge, torch.Size, Tensor]:
    return get_gradient_edge(y), y.shape, y.new_empty(0)
