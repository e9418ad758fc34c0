"""What one forward pass leaves behind: which outputs came from which parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
class Use:
    """One use of parameters by the examples.

    Attributes:
        output: What came out, as a place in the graph: the gradient b is wanted there.
        shape: Of what came out [B, ...]; B is a multiple of the number of examples.
        like: An empty tensor of its type, on its device.
        parameters: The trainable parameters that were used.
        product: What kind of product it was; None: the parameter's copies themselves came out.
    """

    output: GradientEdge
    shape: torch.Size
    like: Tensor
    parameters: tuple[nn.Parameter, ...]
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
        self._batches: set[int] = set()
        self._lengths: set[int] = set()
        self._open = False

    # `with record:` alone runs functions as they were run when it was open, and notes nothing: with gradient
    # checkpointing a backward runs the forward again, and must find the same graph.

    @contextmanager
    def open(self) -> Iterator[None]:
        """Record the forward pass that is run inside."""
        self._open = True
        try:
            with self:
                yield
        finally:
            self._open = False

    def examples(self, losses: Tensor) -> int:
        """The number of examples in the batch: as many as there are losses, or rows in what the model was given.

        Args:
            losses: One loss [], or one per example [n].

        Raises:
            NotCoveredError: It cannot be told.
        """
        if losses.ndim:
            return len(losses)
        if len(self._batches) != 1:
            seen = f"was called with {sorted(self._batches)} of them" if self._batches else "itself was not called"
            raise NotCoveredError(
                f"how many examples there are cannot be told from a scalar loss, because the model {seen}; "
                f"return one loss per example, for example F.cross_entropy(logits, labels, reduction='none')"
            )
        return next(iter(self._batches))

    def calls_have(self, examples: int) -> bool:
        """Whether the model was always called with one row per example."""
        return self._batches == {examples}

    def layout(self, examples: int) -> frozenset[object]:
        """How many rows the uses have per example: the same for batches that are laid out in the same way."""
        rows = {use.shape[0] / examples for use in self.uses} | {b / examples for b in self._batches}
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
            self.uses.append(Use(get_gradient_edge(y), y.shape, y.new_empty(0), parameters, product))

    def _see_inputs(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        super()._see_inputs(module, args, kwargs)
        first = tensors_in((args, kwargs))[:1]
        self._batches |= {len(t) for t in first if t.ndim}
        self._lengths |= {t.shape[1] for t in first if t.ndim > 1}
