"""What one forward pass left in each layer, and whether that tells the whole gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deltasam import weight_space
from deltasam.passes import Passes
from deltasam.per_example.rules import Rule

_EXACT = (torch.float32, torch.float64)


class NotCoveredError(Exception):
    """The record does not tell every example's whole gradient; the message says why."""


@dataclass
class Call:
    """One layer's call: input and output of the whole batch, and once it is known the output's gradient b."""

    name: str
    layer: nn.Module
    x: Tensor
    y: Tensor
    b: Tensor = field(init=False)

    @property
    def rule(self) -> Rule:
        """The mathematics of this layer."""
        return Rule.registry[type(self.layer)]

    def rows(self, groups: int) -> tuple[Tensor, Tensor]:
        """Input and output gradient as [groups, rows, features]."""
        return self.rule.rows(self.x, groups), self.b.reshape(groups, -1, self.b.shape[-1])


class Record:
    """The calls of every layer that owns trainable parameters, in one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = {
            m: name for name, m in model.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))
        }
        self.calls: list[Call] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """Record the forward passes run inside."""
        handles = [m.register_forward_hook(self._hook) for m in self._owners if type(m) in Rule.registry]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        x, expanded = args[0] if args else None, None
        n = len(self.calls[0].y) if self.calls else 0
        if isinstance(layer, nn.Embedding) and x is not None and len(x) == 1 and n > 1:
            # Positions are looked up once for the whole batch; a row per example gives each its own gradient.
            x, y = x.expand(n, *x.shape[1:]), y.expand(n, *y.shape[1:])
            expanded = y
        if x is None:
            x = y.new_zeros(0)  # called by keyword: no record, and `check` says so
        self.calls.append(Call(self._owners[layer], layer, x.detach(), y))
        return expanded

    def check_layers(self, n: int) -> None:
        """Check what can be seen without a backward.

        Raises:
            NotCoveredError: A parameter is used in a way that no rule describes.
        """
        _require(self._owners != {}, "no module owns a trainable parameter")
        for layer, name in self._owners.items():
            rule = Rule.registry.get(type(layer))
            _require(
                rule is not None and rule.covers(layer), f"{name or 'the model'} ({type(layer).__name__}) has no rule"
            )
        seen = [id(p) for m in self._owners for p in m.parameters(recurse=False)]
        _require(len(seen) == len(set(seen)), "parameters are shared between layers")
        names = [c.name for c in self.calls]
        _require(sorted(names) == sorted(self._owners.values()), "a layer was not called exactly once")
        for call in self.calls:
            fits = (
                call.y.requires_grad and call.y.dtype in _EXACT and call.y.ndim > 1 and len(call.y) == n == len(call.x)
            )
            _require(fits, f"{call.name} was called without gradient, in low precision or without a batch axis of {n}")

    def complete(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradient with respect to each call's output; None for an output that nothing uses."""
        for call, b in zip(self.calls, gradients, strict=True):
            call.b = torch.zeros_like(call.y) if b is None else b

    def check_gradients(self, passes: Passes, losses: Tensor) -> None:
        """Check against autograd that the record explains the gradient, and that examples do not meet.

        Args:
            passes: The record is of the first of them.
            losses: One per example [n]; the record holds the gradients of their sum.

        Raises:
            NotCoveredError: They disagree.
        """
        of_first = passes.grad(losses[0], [c.y for c in self.calls], retain_graph=True)
        meet = any(b is not None and b[1:].any() for b in of_first)
        _require(not meet, "the loss of one example depends on another example")
        owned = [(c, n, p) for c in self.calls for n, p in c.layer.named_parameters(recurse=False) if p.requires_grad]
        gradients = passes.grad(losses.sum(), [p for _, _, p in owned], retain_graph=True)
        expected = [torch.zeros_like(p) if g is None else g for (_, _, p), g in zip(owned, gradients, strict=True)]
        # Measured also against the whole gradient: a key's bias, say, has a gradient of 0 but for rounding.
        total = weight_space.norm(expected)
        _require(bool(total > 0), "the gradient is zero or not a number, so the record cannot be checked")
        for (call, name, _), truth in zip(owned, expected, strict=True):
            found = call.rule.gradient(call.layer, *call.rows(len(losses)))[name]
            tolerance = 1e-9 if truth.dtype == torch.float64 else 1e-3
            scale = truth.norm() + 0.01 * total
            _require(bool((found - truth).norm() <= tolerance * scale), f"{call.name}.{name} is used outside its layer")


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise NotCoveredError(reason)
