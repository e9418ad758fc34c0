"""How a loss becomes gradients. The plain way; stacks with their own way subclass it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


class Runtime:
    """Plain PyTorch: ``loss.backward()`` and ``torch.autograd.grad``."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` [] to ``.grad`` of every parameter it depends on."""
        loss.backward()

    def grad(
        self, loss: Tensor, params: Sequence[Tensor] | Sequence[GradientEdge], *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradient of ``loss`` [] with respect to each of ``params``; None where it does not depend on one.

        ``.grad`` is not touched, and hooks on gradients (data-parallel reduction) do not run.
        """
        gradients = torch.autograd.grad(loss, params, allow_unused=True, retain_graph=retain_graph)
        return [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
