"""What a tensor knows of its memory and its hooks.

- `Tensor._version` (2.6): whether a tensor was written into since it was looked at. Without it: AttributeError at the
  first step.
- `torch._C`: its `_autograd`, with `_unsafe_set_version_counter` (2.6 for one tensor, 2.7 for several): buffers that
  hold their old values again. Without it: AttributeError where buffers are written into in several processes.
- `Tensor._is_view`, `Tensor._base` (2.6): the rows that a linear layer's output is a view of. Without them:
  AttributeError at the first step of a per-example method.
- `Tensor._backward_hooks` (2.6): how many hooks look at a gradient on its way, and to set them aside. Without it: the
  same.
- `Tensor._post_accumulate_grad_hooks` (2.6): whether something runs once a gradient has arrived. Without it:
  AttributeError where a graph has leaves beside the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written into.

    Raises:
        RuntimeError: It was made in inference mode, where PyTorch does not count.
    """
    return tensor._version


def set_version(tensor: Tensor, version: int) -> None:
    """Say that a tensor was written into as many times as before: it holds the same values."""
    setter = torch._C._autograd._unsafe_set_version_counter
    try:
        setter((tensor,), (version,))
    except TypeError:  # PyTorch 2.6 takes one tensor
        setter(tensor, version)  # type: ignore[arg-type]


def base_of(view: Tensor) -> Tensor | None:
    """The tensor that one is a view of, if it is one."""
    return view._base if view._is_view() else None


def number_of_hooks(tensor: Tensor) -> int:
    """How many hooks look at its gradient."""
    return len(tensor._backward_hooks or ())


@contextmanager
def hooks_aside(tensor: Tensor) -> Iterator[None]:
    """Inside, no hook of this tensor sees its gradient."""
    hooks = tensor._backward_hooks
    kept = dict(hooks or {})
    try:
        if hooks:
            hooks.clear()
        yield
    finally:
        if hooks is not None:
            hooks.update(kept)


def runs_after_gradient(tensor: Tensor) -> bool:
    """Whether hooks run once its gradient has arrived in ``.grad``."""
    return bool(tensor._post_accumulate_grad_hooks)
