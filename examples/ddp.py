"""Two processes with DistributedDataParallel: what they compute together.

    torchrun --nproc-per-node 2 examples/ddp.py      # or without torchrun: it starts two processes itself

What one sees: with half of the batch in each process, ``per_instance_sam`` fills the gradient of one process with the
whole batch; so does ``sam:share=global``. ``sam`` as it is fills the mean of each process's own SAM gradient. Also
where a parameter is not used (``find_unused_parameters=True``). After ``backward`` all processes hold the same
``.grad``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later it may keep the group beyond its end, and abort the process
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import deltasam
from deltasam import reference

torch.manual_seed(0)
X, Y = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))
MODEL = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
MODEL.register_parameter("unused", nn.Parameter(torch.ones(5, dtype=torch.float64)))


def by_equation(method: str, rows: slice, **settings: float) -> Tensor:
    """The gradient of one process with these examples."""
    losses, w = reference.losses_function(MODEL, lambda m: F.cross_entropy(m(X[rows]), Y[rows], reduction="none"))
    return flat(getattr(reference, method)(losses, w, rho=0.3, **settings).values())


def together(spec: str) -> Tensor:
    """The gradient of all processes, each with its half of the examples."""
    MODEL.zero_grad()
    rank, half = dist.get_rank(), len(X) // 2
    mine = slice(rank * half, (rank + 1) * half)
    ddp = DistributedDataParallel(MODEL, find_unused_parameters=True)
    method = deltasam.make_method(spec, ddp)
    method.backward(lambda: F.cross_entropy(ddp(X[mine]), Y[mine], reduction="none"))
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in MODEL.parameters())


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def main() -> None:
    whole, first, second = slice(0, 16), slice(0, 8), slice(8, 16)
    expected = {
        "per_instance_sam:rho=0.3": by_equation("per_instance_sam", whole, m=1),
        "sam:rho=0.3,share=global": by_equation("sam", whole),
        "sam:rho=0.3": (by_equation("sam", first) + by_equation("sam", second)) / 2,
    }
    for spec, gradient in expected.items():
        found = together(spec)
        both = [torch.empty_like(found) for _ in range(2)]
        dist.all_gather(both, found)
        assert torch.equal(*both)
        assert (found - gradient).norm() < 1e-10
        if dist.get_rank() == 0:
            print(f"{spec:26} {float((found - gradient).norm()):.0e} from its equation, the same in both processes")


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
