"""What a model gives for many rows, as fast as several processes can find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deltasam.lab.train import distributed as processes


def outputs_of(
    model: nn.Module, forward: Callable[[list[int]], Tensor], rows: Sequence[int], batch_size: int
) -> Tensor:
    """The outputs of a model for some rows [rows, ...], in their order, dropout off.

    Several processes share the batches, which are those of one, so that the outputs are too.

    Args:
        model: Left in the mode, training or evaluation, in which it came.
        forward: From some rows to the model's outputs [rows, ...].
        rows: Best sorted by length, so that batches need little padding.
        batch_size: Rows per forward pass.
    """
    training = model.training
    chunks = [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    model.eval()
    try:
        with torch.no_grad():
            mine = [forward(chunk).cpu() for chunk in chunks[processes.rank() :: processes.count()]]
    finally:
        model.train(training)
    theirs = processes.gather(mine)
    return torch.cat([theirs[i % len(theirs)][i // len(theirs)] for i in range(len(chunks))])
