"""What processes that train together tell each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 1 << 23
"""Elements that are sent at a time."""


def alone(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is one process only."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def any_process(flag: bool, device: torch.device, group: dist.ProcessGroup | None = None) -> bool:
    """Whether a flag is set in any process of a group: one number is sent; the flag itself where there is one process.

    Args:
        flag: Of this process.
        device: Where tensors are sent from.
        group: The processes; None: all there are.
    """
    if alone(group):
        return flag
    sent = torch.tensor(float(flag), device=device)
    dist.all_reduce(sent, dist.ReduceOp.MAX, group=group)
    return bool(sent)


def mean_over_processes(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> Iterator[Tensor]:
    """The mean of each tensor over the processes of a group; the tensors themselves where there is one process.

    One bucket after the other, so that who uses a mean at once needs no memory for all of them.

    Args:
        tensors: As many, of the same shapes, in every process.
        group: The processes; None: all there are.
    """
    if alone(group):
        yield from tensors
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([t.flatten() for t in bucket])
        dist.all_reduce(flat, group=group)
        flat.div_(dist.get_world_size(group))
        parts = flat.split([t.numel() for t in bucket])
        yield from (part.view(t.shape) for part, t in zip(parts, bucket, strict=True))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type on one device, together."""
    bucket: list[Tensor] = []
    for t in tensors:
        if bucket and (
            (t.dtype, t.device) != (bucket[0].dtype, bucket[0].device)
            or sum(b.numel() for b in bucket) + t.numel() > _BUCKET
        ):
            yield bucket
            bucket = []
        bucket.append(t)
    if bucket:
        yield bucket
