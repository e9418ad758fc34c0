"""After a measurement nothing is different."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from deltasam.core.restore import Buffers, RandomState, accelerators


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Gradients (the same tensors), buffers and random state as they were, whatever happens."""
    gradients = [(p, p.grad) for p in model.parameters()]
    random_state, buffers = RandomState(accelerators(model.parameters())), Buffers(model.modules())
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        buffers.restore()
        random_state.restore()
