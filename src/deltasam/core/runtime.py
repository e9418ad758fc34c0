"""How gradients of a loss are computed: in plain PyTorch; training stacks with their own backward subclass it."""

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
        scaler: Scaler applied to every loss before its gradient is taken, for float16. The closure returns the unscaled
            loss; the metrics are in its units. Unscale before clipping, once, as usual.
        group: The processes that train on other examples of the same batch; None: all of ``torch.distributed``.
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
        """Mean of a vector over all processes, in some of which an entry may be None; itself in a single process."""
        sharded = any(map(is_sharded, params))
        if alone(self.group) and not sharded:
            return list(vector)
        dense = [torch.zeros_like(p) if v is None else v for v, p in zip(vector, params, strict=True)]
        if sharded:  # FSDP has averaged the gradients of sharded weights already
            return [v if is_sharded(v) else sharded_mean(v, p) for v, p in zip(dense, params, strict=True)]
        return list(mean_over_processes(dense, self.group))

    def any_process(self, flag: bool, device: torch.device) -> bool:
        """Whether a flag is set in any process.

        All processes must run the same number of passes, since they may communicate in them.

        Args:
            flag: The flag of this process.
            device: The device it is sent from.
        """
        return any_process(flag, device, self.group)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the factor of the scaler, if there is one."""
        return loss if self.scaler is None else self.scaler.scale(loss)
