"""Gradients that are written into ``.grad`` while others are taken.

A loss may end in a detached leaf whose hook runs the real backward (GradCache), and a checkpoint may run a backward of
its own inside the backward (reentrant ones). ``torch.autograd.grad`` does not return what these find: they write it
into ``.grad``. So ``.grad`` is set aside meanwhile, and what is found there afterwards is the rest of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deltasam.core.collectives import alone
from deltasam.core.torch_internals.modes import unseen


@contextmanager
def grads_aside(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, no tensor has a ``.grad`` but what is written there; afterwards each has the one that it had before."""
    before = grads_of(tensors)
    try:
        set_grads(tensors, [None] * len(tensors))
        yield
    finally:
        set_grads(tensors, before)


def grads_of(tensors: Iterable[Tensor]) -> list[Tensor | None]:
    """``.grad`` of each; to look at it is no use of a parameter, whatever mode is on."""
    with unseen():
        return [t.grad for t in tensors]


def set_grads(tensors: Iterable[Tensor], grads: Iterable[Tensor | None]) -> None:
    """Give each its ``.grad``."""
    with unseen():
        for t, grad in zip(tensors, grads, strict=True):
            t.grad = grad


def refuse_reduction(model: nn.Module) -> None:
    """Refuse inner backwards where gradients are reduced: they would start a reduction in the middle of an ascent.

    Raises:
        RuntimeError: There are several processes, or the model is in DistributedDataParallel.
    """
    if not alone() or any(isinstance(m, DistributedDataParallel) for m in model.modules()):
        raise RuntimeError(
            "the loss runs a backward of its own inside its backward (a GradCache loss, a reentrant checkpoint), and "
            "there DistributedDataParallel would reduce gradients of the ascent; use one process, checkpoints with "
            "use_reentrant=False, a loss that is not cached, or ERM"
        )
