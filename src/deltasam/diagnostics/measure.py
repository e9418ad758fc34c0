"""Run one method on one batch and note what it did: gradient, losses, distance, time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.passes import Closure
from deltasam.core.restore import Buffers, RandomState, accelerators
from deltasam.core.torch_internals.modes import unseen
from deltasam.diagnostics.batches import epsilon_of
from deltasam.method import Method


@dataclass(frozen=True)
class Measurement:
    """One call of ``backward``.

    Attributes:
        gradient: What it added to ``.grad``, one dense tensor per trainable parameter.
        loss: Mean loss at the weights as they are.
        rise: How much more it is at the method's perturbed weights; 0 where nothing was perturbed.
        distance: Of the weights from where they were, in the last pass that has a gradient.
        seconds: How long it took.
        weights: That it gave to the examples [n]; None where it gave none.
    """

    gradient: list[Tensor]
    loss: float
    rise: float
    distance: float
    seconds: float
    weights: Tensor | None


class Harness:
    """Where methods are measured one after the other, each from the same start.

    Args:
        model: Its gradients, buffers and random state are left as the last method left them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._weights = [p.detach().clone() for p in self._params]
        self._devices = accelerators(model.parameters())
        self._buffers = Buffers(model.modules())
        self.begin()

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the coarsest trainable parameter's type."""
        return epsilon_of(self._params)

    def begin(self) -> None:
        """Take the random state of now as the start of a new batch."""
        self._start = RandomState(self._devices)

    def measure(self, method: Method, closure: Closure) -> Measurement:
        """Run a method's ``backward`` from the start of the batch."""
        self._start.restore()
        self._buffers.restore()
        for p in self._params:
            p.grad = None
        watched = _Watched(closure, self._params, self._weights)
        began = time.perf_counter()
        step = method.backward(watched)
        wait_for_device()
        seconds = time.perf_counter() - began - watched.seconds
        rise = step.metrics.get("perturbed_loss", step.loss).double() - step.loss.double()
        weights = step.metrics.get("weights")
        return Measurement(self._gradient(), float(step.loss), float(rise), watched.distance, seconds, weights)

    def _gradient(self) -> list[Tensor]:
        found = [p.new_zeros(()).expand_as(p) if p.grad is None else p.grad for p in self._params]
        return [g.detach().to_dense() if g.is_sparse else g.detach() for g in found]


class _Watched:
    """A closure that notes where the weights are: a method may measure its rho in units of its own."""

    def __init__(self, closure: Closure, params: list[nn.Parameter], weights: list[Tensor]) -> None:
        self._closure, self._params, self._weights = closure, params, weights
        self._calls = 0
        self.distance, self.seconds = 0.0, 0.0

    def __call__(self) -> Any:
        self._calls += 1
        if self._calls > 1 and torch.is_grad_enabled():
            began = time.perf_counter()
            with torch.no_grad(), unseen():  # a look at the weights is no use of them
                self.distance = float(vectors.distance(self._params, self._weights))
            self.seconds += time.perf_counter() - began  # is no part of the method's time
        return self._closure()


def wait_for_device() -> None:
    """Until what was given to the accelerator is done; the CPU has done it."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
