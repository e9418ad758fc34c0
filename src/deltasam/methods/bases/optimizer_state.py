"""Base class of the methods that read what the optimizer keeps: its momentum, its second moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltasam.core.passes import Passes
from deltasam.core.sharding import is_sharded
from deltasam.method import Method


class ReadsOptimizer(Method):
    """A method that reads the state of the optimizer that it follows: ``follow(optimizer)`` once before training.

    Attributes:
        optimizer_keys: Names under which optimizers keep what is read; the first that is there counts.
    """

    optimizer_keys: tuple[str, ...]
    _optimizer: torch.optim.Optimizer | None = None
    _has_stepped = False

    def follow(self, optimizer: torch.optim.Optimizer, *, total_steps: int | None = None) -> None:
        """Read this optimizer's state from now on."""
        self._optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper holds the one with state
        self._has_stepped = False
        self.after_each_step(optimizer, self._count)

    def _count(self, *_: object) -> None:
        self._has_stepped = True

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy: it follows no optimizer."""
        return {key: value for key, value in super().__getstate__().items() if key != "_optimizer"}

    def groups(self) -> dict[int, dict[str, Any]]:
        """The optimizer's group of each parameter, by the parameter's id.

        Raises:
            RuntimeError: The method follows no optimizer.
        """
        if self._optimizer is None:
            raise RuntimeError(
                f"{self.spec} reads the state of the optimizer; call method.follow(optimizer) once before training"
            )
        return {id(p): group for group in self._optimizer.param_groups for p in group["params"]}

    def optimizer_state(self, passes: Passes) -> list[Tensor | None]:
        """What the optimizer keeps for each parameter; None for all before its first step.

        Raises:
            RuntimeError: The method follows no optimizer, or one that has stepped and keeps nothing of the kind.
            ValueError: What it keeps is quantized, or laid out differently from the parameters.
        """
        self.groups()
        states = [self._optimizer.state.get(p, {}) for p in passes.params]  # type: ignore[union-attr]
        found = [next((s[k] for k in self.optimizer_keys if s.get(k) is not None), None) for s in states]
        kind = type(self._optimizer).__name__
        if self._has_stepped and all(value is None for value in found):
            raise RuntimeError(
                f"{self.spec} reads {' or '.join(self.optimizer_keys)} from the optimizer, and {kind} keeps none "
                f"(SGD has momentum only with momentum=0.9, say); use another optimizer, or sam"
            )
        if any(s and value is None for s, value in zip(states, found, strict=True)) and any(
            value is not None for value in found
        ):
            raise ValueError(
                f"{self.spec}: {kind} keeps {' or '.join(self.optimizer_keys)} for some parameters and not for others; "
                f"use an optimizer of torch.optim"
            )
        for param, value in zip(passes.params, found, strict=True):
            if value is not None and (value.shape != param.shape or is_sharded(value) != is_sharded(param)):
                raise ValueError(
                    f"{self.spec}: {kind} keeps {list(value.shape)} for a parameter of shape {list(param.shape)} (a "
                    f"quantized, flattened or sharded state); use an optimizer of torch.optim"
                )
        return found
