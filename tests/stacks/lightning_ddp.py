"""Run as a script: trains in two processes under Lightning and writes the weights: ``lightning_ddp.py file cell ...``.

A cell is a spec, and after a space the micro-batches of a step; Lightning starts the second process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.utils.data import Subset

from stacks import lightning_training as stack


def main(path: str, cells: list[str]) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    share = Subset(stack.data(), range(rank, stack.BATCH * stack.BATCHES, 2))
    found = {}
    for cell in cells:
        spec, accumulate = cell.split()
        found[cell] = stack.lightning_weights(
            spec, model=stack.network(dropout=0), dataset=share, batch_size=stack.BATCH // 2, strategy="ddp", devices=2,
            max_epochs=1, accumulate_grad_batches=int(accumulate), use_distributed_sampler=False,
        )  # fmt: skip
    if rank == 0:
        torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
