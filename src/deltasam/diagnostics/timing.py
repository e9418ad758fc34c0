"""One call of a method's ``backward``, with forward and backward timed apart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from deltasam.core.closure import loss_of
from deltasam.core.passes import Closure
from deltasam.core.restore import Buffers, RandomState, accelerators
from deltasam.core.runtime import Runtime
from deltasam.diagnostics.measure import wait_for_device
from deltasam.method import Method


@dataclass(frozen=True)
class Call:
    """Seconds of one call, and how often what ran."""

    seconds: float
    forward: float
    backward: float
    forwards: int
    backwards: int


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds, self.times = 0.0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        wait_for_device()
        began = time.perf_counter()
        yield
        wait_for_device()
        self.seconds += time.perf_counter() - began
        self.times += 1


class _TimedRuntime(Runtime):
    """Plain PyTorch; gradients are timed."""

    def __init__(self, watch: _Stopwatch) -> None:
        super().__init__()
        self._watch = watch

    def backward(self, loss: Tensor) -> None:
        with self._watch.running():
            super().backward(loss)

    def grad(
        self, loss: Tensor, wrt: Sequence[Tensor] | Sequence[GradientEdge], *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        with self._watch.running():
            return super().grad(loss, wrt, retain_graph=retain_graph)


class TimedCalls:
    """Calls that start from the same random state and buffers, without gradients.

    Args:
        model: Its gradients, buffers and random state are left as the last call left them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._start, self._buffers = RandomState(accelerators(model.parameters())), Buffers(model.modules())

    def call(self, method: Method, closure: Closure) -> Call:
        """One call of a method's ``backward``."""
        self._begin()
        whole, forward, backward = _Stopwatch(), _Stopwatch(), _Stopwatch()

        def timed() -> Any:
            with forward.running():
                return closure()

        with whole.running():
            method.backward(timed, runtime=_TimedRuntime(backward))
        return Call(whole.seconds, forward.seconds, backward.seconds, forward.times, backward.times)

    def plain(self, closure: Closure) -> Call:
        """A forward and a ``loss.backward()``, without any method."""
        self._begin()
        forward, backward = _Stopwatch(), _Stopwatch()
        with forward.running():
            loss = loss_of(closure())
        with backward.running():
            loss.backward()
        return Call(forward.seconds + backward.seconds, forward.seconds, backward.seconds, 1, 1)

    def _begin(self) -> None:
        self._start.restore()
        self._buffers.restore()
        for p in self.model.parameters():
            p.grad = None
