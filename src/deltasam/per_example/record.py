"""What one forward pass left in each layer, and whether that tells the whole gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltasam.per_example.rules import Rule

_EXACT = (torch.float32, torch.float64)


class NotCoveredError(Exception):
    """The record does not tell every example's whole gradient; the message says why."""


@dataclass
class Call:
    """One layer's call: input and output of the whole batch, and later the output's gradient."""

    name: str
    layer: nn.Module
    x: Tensor
    y: Tensor


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

    def check_gradients(self, losses: Tensor, gradients: list[Tensor]) -> None:
        """Check against autograd that the record explains the gradient, and that examples do not meet.

        Args:
            losses: One per example [n].
            gradients: Of ``losses.sum()`` with respect to each call's output.

        Raises:
            NotCoveredError: They disagree.
        """
        rows = torch.autograd.grad(losses[0], [c.y for c in self.calls], retain_graph=True)
        _require(not any(r[1:].any() for r in rows), "the loss of one example depends on another example")
        parameters = [
            (c, n, p) for c in self.calls for n, p in c.layer.named_parameters(recurse=False) if p.requires_grad
        ]
        expected = torch.autograd.grad(losses.sum(), [p for _, _, p in parameters], retain_graph=True)
        # Measured also against the whole gradient: a key's bias, say, has a gradient of 0 but for rounding.
        total = torch.stack([truth.norm() for truth in expected]).norm()
        _require(bool(total > 0), "the gradient is zero or not a number, so the record cannot be checked")
        for (call, name, _), truth in zip(parameters, expected, strict=True):
            b = gradients[self.calls.index(call)]
            found = Rule.registry[type(call.layer)].gradient(call.layer, *rows_of(call, b, len(b)))[name]
            tolerance = 1e-9 if truth.dtype == torch.float64 else 1e-3
            scale = truth.norm() + 0.01 * total
            _require(bool((found - truth).norm() <= tolerance * scale), f"{call.name}.{name} is used outside its layer")


def rows_of(call: Call, gradient: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """A call's input and output gradient as [groups, rows, features]; ids have one feature."""
    return rows_like(call, call.x, groups), gradient.reshape(groups, -1, gradient.shape[-1])


def rows_like(call: Call, x: Tensor, groups: int) -> Tensor:
    """A layer input as [groups, rows, features]; ids have one feature."""
    return x.reshape(groups, -1, 1 if isinstance(call.layer, nn.Embedding) else x.shape[-1])


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise NotCoveredError(reason)
