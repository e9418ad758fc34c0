"""How a loss becomes gradients. The plain way; stacks with their own way subclass it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge

from deltasam.core.collectives import alone, any_process, mean_over_processes
from deltasam.core.sharding import is_sharded, sharded_mean


class Runtime:
    """Plain PyTorch: ``loss.backward()`` and ``torch.autograd.grad``.

    Args:
        scaler: Scales every loss that a gradient is taken of, for float16. The closure then returns the loss as it
            is; the metrics are in its units. Unscale before clipping, once, as always.
        group: The processes that train on other examples of the same batch; all of ``torch.distributed`` unless given.
    """

    def __init__(self, *, scaler: torch.amp.GradScaler | None = None, group: dist.ProcessGroup | None = None) -> None:
        self.scaler, self.group = scaler, group

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` [] to ``.grad`` of every parameter it depends on."""
        self.scaled(loss).backward()

    def grad(
        self, loss: Tensor, wrt: Sequence[Tensor] | Sequence[GradientEdge], *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradient of the scaled ``loss`` [] with respect to each of ``wrt``; None where it does not depend on one.

        ``.grad`` is not touched, and hooks on gradients (data-parallel reduction) do not run.
        """
        gradients = torch.autograd.grad(self.scaled(loss), wrt, allow_unused=True, retain_graph=retain_graph)
        return [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]

    @property
    def is_alone(self) -> bool:
        """Whether no other process trains on examples of the same batch."""
        return alone(self.group)

    def mean_over_processes(self, vector: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor | None]:
        """The mean of a vector over all processes, where an entry may be None in some; itself where there is one."""
        sharded = any(map(is_sharded, params))
        if alone(self.group) and not sharded:
            return list(vector)
        dense = [torch.zeros_like(p) if v is None else v for v, p in zip(vector, params, strict=True)]
        if sharded:  # a gradient of sharded weights is a mean already
            return [v if is_sharded(v) else sharded_mean(v, p) for v, p in zip(dense, params, strict=True)]
        return list(mean_over_processes(dense, self.group))

    def any_process(self, flag: bool, device: torch.device) -> bool:
        """Whether a flag is set in any process, so that all run as many passes: they may talk to each other in these.

        Args:
            flag: Of this process.
            device: Where it is sent from.
        """
        return any_process(flag, device, self.group)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the factor of the scaler, if there is one."""
        return loss if self.scaler is None else self.scaler.scale(loss)
