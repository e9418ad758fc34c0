"""Backwards in which a ``TorchFunctionMode`` stays on.

A backward is a torch function too, and inside a torch function the mode that sees it is off. But gradient checkpointing
runs the forward again in there, and must find the mode as it was. Called with places in the graph instead of tensors, a
backward is no torch function, and the mode stays on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from deltasam.core.torch_internals.modes import unseen

Outputs = Tensor | GradientEdge | Sequence[Tensor | GradientEdge]


def _tensor_backward(tensor: Tensor, gradient: Tensor | None = None, *args: Any, **kwargs: Any) -> None:
    torch.autograd.backward(_edges(tensor), gradient, *args, **kwargs)


def _backward(tensors: Outputs, *args: Any, **kwargs: Any) -> None:
    torch.autograd.backward(_edges(tensors), *args, **kwargs)


def _grad(outputs: Outputs, inputs: Outputs, *args: Any, **kwargs: Any) -> Any:
    return torch.autograd.grad(_edges(outputs), _edges(inputs), *args, **kwargs)


def _edges(tensors: Outputs) -> list[GradientEdge]:
    several = [tensors] if isinstance(tensors, (Tensor, GradientEdge)) else tensors
    with unseen():  # to ask for the place of a parameter is no use of it
        return [get_gradient_edge(t) if isinstance(t, Tensor) else t for t in several]


BACKWARDS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.backward: _tensor_backward,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _grad,
}
"""What to call, with the mode on, in place of a backward that the mode has seen."""
