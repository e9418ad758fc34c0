"""Two processes with DistributedDataParallel: what they send.

    torchrun --nproc-per-node 2 examples/ddp_communication.py      # or without torchrun

What one sees: a step of ``sam`` or ``per_instance_sam`` sends what a step of plain training sends, one all-reduce of
the gradient: the first pass stays local, and DDP reduces in the second. ``share=global`` sends the ascent too. With
gradient accumulation under ``no_sync`` only the last micro-batch sends. Buffers are another matter: DDP broadcasts
those of process 0 in every forward, so two passes broadcast twice.

Everything that is sent goes through operators of the namespace ``c10d``, also from inside DDP; they are counted
there.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import deltasam

torch.manual_seed(0)
X, Y = torch.randn(16, 4), torch.randint(3, (16,))


class Sent(TorchDispatchMode):
    """Counts calls, and the bytes of their tensors, of every collective."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__.strip("_")
            self.calls[name] += 1
            self.bytes[name] += sum(t.nbytes for t in args[0])
        return func(*args, **(kwargs or {}))


def sent(spec: str, norm: nn.Module, *, micro_batches: int = 1) -> tuple[Counter, Counter]:
    """What one process sends in its third step: before that DDP arranges its buckets."""
    torch.manual_seed(1)
    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3)))
    method = deltasam.make_method(spec, ddp)
    mine = slice(dist.get_rank(), None, 2)
    parts = list(zip(X[mine].chunk(micro_batches), Y[mine].chunk(micro_batches), strict=True))
    for _ in range(3):
        ddp.zero_grad()
        with Sent() as counted:
            for i, (x, y) in enumerate(parts):
                with ddp.no_sync() if i < len(parts) - 1 else nullcontext():
                    method.backward(lambda x=x, y=y: F.cross_entropy(ddp(x), y) / micro_batches)
    return counted.calls, counted.bytes


def main() -> None:
    gradient = 4 * (4 * 8 + 8 + 8 + 8 + 8 * 3 + 3)  # bytes in float32
    once, twice = ({"allreduce": k} for k in (1, 2))
    expected = {"erm": once, "sam": once, "asam": once, "per_instance_sam": once, "sam:share=global": twice}
    for spec, calls in expected.items():
        for micro_batches in (1, 4) if "global" not in spec else (1,):
            found, size = sent(spec, nn.LayerNorm(8), micro_batches=micro_batches)
            say(f"{spec}, {micro_batches} micro-batches: {dict(found)}, {dict(size)} bytes")
            # Methods that watch single examples tell each other in every pass whether one has seen something new.
            flags = micro_batches if spec == "per_instance_sam" else 0
            assert found == {"allreduce": calls["allreduce"] + flags}
            assert size == {"allreduce": calls["allreduce"] * gradient + 4 * flags}
    (plain, _), (sam, _) = sent("erm", nn.BatchNorm1d(8)), sent("sam", nn.BatchNorm1d(8))
    say(f"with the buffers of BatchNorm: erm {dict(plain)}, sam {dict(sam)}")
    assert sam == {"allreduce": 1, "broadcast": 2 * plain["broadcast"]}


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text)


def start(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    main()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun has started us
        dist.init_process_group("gloo")
        main()
        dist.destroy_process_group()
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(start, (folder,), nprocs=2)
