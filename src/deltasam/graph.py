"""What would make ``torch.autograd.grad`` wrong without a word is found in the graph of a loss, and is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def refuse_what_goes_wrong(loss: Tensor) -> None:
    """Look through the graph of a loss [].

    Raises:
        RuntimeError: Part of it is a reentrant checkpoint: the parameters in there would seem not to be used at all. Or
            it is the first graph of DistributedDataParallel(static_graph=True): gradients would never be reduced.
    """
    for node in _nodes(loss):
        if check := _CHECKS.get(node.name()):
            check(node)


def _nodes(loss: Tensor) -> Iterator[Any]:
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


def _reentrant_checkpoint(_: Any) -> None:
    raise RuntimeError(
        "gradient checkpointing with use_reentrant=True hides parameters from torch.autograd.grad; use "
        "use_reentrant=False, with transformers "
        "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
    )


def _data_parallel_sink(node: Any) -> None:
    if node.ddp_weakref().static_graph:  # it is in the graph until the first backward, after which all is well
        raise RuntimeError(
            "DistributedDataParallel(static_graph=True) reduces gradients in the first backward it sees: here "
            "an ascent; leave static_graph out, or take the first step with ERM"
        )


_CHECKS: dict[str, Callable[[Any], None]] = {
    "CheckpointFunctionBackward": _reentrant_checkpoint,
    "_DDPSinkBackward": _data_parallel_sink,
}
