"""Reentrant gradient checkpointing hides parameters from ``torch.autograd.grad``: an error, not a smaller gradient."""

from __future__ import annotations

from torch import Tensor


def refuse_reentrant_checkpoints(loss: Tensor) -> None:
    """Look through the graph of a loss [].

    Raises:
        RuntimeError: Part of it is a reentrant checkpoint; the parameters in there would seem not to be used at all.
    """
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "gradient checkpointing with use_reentrant=True hides parameters from torch.autograd.grad; use "
                "use_reentrant=False, with transformers "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
            )
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
