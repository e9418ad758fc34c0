"""What derivatives of derivatives need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from deltasam.core.torch_internals.compiled import eager


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, attention is computed from plain products, and compiled code runs as it was written.

    The fused kernels of attention, and compiled code, have no derivative of their derivative.
    """
    with eager(), sdpa_kernel(SDPBackend.MATH):
        yield
