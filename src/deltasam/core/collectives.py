"""Collective operations of the processes that train together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 1 << 23
"""Number of elements reduced at a time."""


def alone(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is a single process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def any_process(flag: bool, device: torch.device, group: dist.ProcessGroup | None = None) -> bool:
    """Whether a flag is set in any process of a group: one number is reduced; nothing is sent by a single process.

    Args:
        flag: The flag of this process.
        device: The device tensors are sent from.
        group: The processes; None: all.
    """
    if alone(group):
        return flag
    sent = torch.tensor(float(flag), device=device)
    dist.all_reduce(sent, dist.ReduceOp.MAX, group=group)
    return bool(sent)


def mean_over_processes(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> Iterator[Tensor]:
    """The mean of each tensor over the processes of a group; the tensors themselves in a single process.

    Reduced bucket by bucket, so that a caller that consumes each mean at once needs no memory for all of them.

    Args:
        tensors: Tensors; equally many, of the same shapes, in every process.
        group: The processes; None: all.
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
    """Group consecutive tensors of one dtype and device."""
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
