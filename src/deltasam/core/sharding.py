"""Weights that FSDP2 (``fully_shard``) shards across processes.

A sharded parameter is a ``DTensor`` outside of a forward pass; inside, the module holds the unsharded parameter
instead, and its gradients are reduced by a backward only, never by ``torch.autograd.grad``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def is_sharded(tensor: object) -> TypeGuard[Any]:
    """Whether a tensor is sharded across processes."""
    # Importing the module costs half a second; where a DTensor exists it has been imported.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def sharded_as(part: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor as a tensor that is sharded as ``like`` is; the part itself if that is whole."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def sharded_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """The modules among these that ``fully_shard`` was called on.

    Raises:
        NotImplementedError: A module is wrapped in FSDP version 1, which hides parameters.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    modules = list(modules)
    if any(isinstance(m, fsdp.FullyShardedDataParallel) for m in modules):
        raise NotImplementedError(
            "FullyShardedDataParallel (FSDP version 1) flattens the weights; use torch.distributed.fsdp.fully_shard "
            "(FSDP2)"
        )
    return [m for m in modules if isinstance(m, fsdp.FSDPModule)]


def reshard(modules: Sequence[Any]) -> None:
    """Make the next pass gather the weights again: the root keeps its own from a forward to the backward."""
    for module in modules:
        module.reshard()


def refuse_unreduced() -> None:
    """Refuse a backward that has produced no gradient of sharded weights.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "FSDP has not reduced the gradient of the first pass: gradient synchronisation is off (no_sync, "
        "set_requires_gradient_sync(False)); leave it on, or give all micro-batches in one call with share=global"
    )


def norm_of_parts(norms: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Norm [] of sharded tensors from the norms of this process's shards; one reduction per placement."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    by_placement: dict[Any, list[tuple[Tensor, Any]]] = {}
    for norm, tensor in zip(norms, tensors, strict=True):
        key = (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None
        by_placement.setdefault(key, []).append((norm, tensor))
    total = torch.zeros((), dtype=norms[0].dtype, device=norms[0].device)
    for key, parts in by_placement.items():
        square = torch.stack([norm for norm, _ in parts]).square().sum()
        if key is not None:
            mesh, placements = key
            # Squares add up over shards, and are equal on replicas, where a sum would count them several times.
            summed = [Partial() if p.is_shard() else Replicate() for p in placements]
            square = DTensor.from_local(square, mesh, summed).full_tensor()
        total = total + square.to(total.device)
    return total.sqrt()


def sharded_mean(tensor: Tensor, like: Tensor) -> Tensor:
    """Mean over the processes of an unsharded tensor that differs between them, sharded as ``like`` is."""
    from torch.distributed.tensor import DTensor, Partial

    mesh = like.device_mesh  # type: ignore[attr-defined]
    partial = DTensor.from_local(tensor, mesh, [Partial("avg")] * mesh.ndim)
    return partial.redistribute(mesh, like.placements)  # type: ignore[attr-defined]
