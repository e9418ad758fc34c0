"""What the graph of a loss ends in, and what in it would make ``torch.autograd.grad`` silently wrong."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """The graph of a loss.

    Attributes:
        leaves: The tensors that it ends in: parameters, and any others that were detached and require a gradient.
        reentrant: Whether part of it is a reentrant checkpoint, which runs inside a plain ``backward`` only.
        names: A hash of the functions it is made of, in turn, and of the parameters it ends in.
    """

    leaves: tuple[Tensor, ...]
    reentrant: bool
    names: int = 0


def graph_of(loss: Tensor, numbers: Mapping[int, int] | None = None) -> Graph:
    """Walk through the graph of a loss [].

    Args:
        loss: The loss.
        numbers: Of the parameters, by id, that stand for them in ``names``: a forward may make others anew each time.

    Raises:
        RuntimeError: It is the first graph of DistributedDataParallel(static_graph=True): gradients would never be
            reduced.
    """
    if loss.grad_fn is None:
        return Graph((loss,), reentrant=False)
    leaves, reentrant = [], False
    names: list[str | int | None] = []
    waiting: list[Any] = [loss.grad_fn]
    seen = {loss.grad_fn}
    while waiting:
        node = waiting.pop()
        name = node.name()
        names.append(name)
        if name == "torch::autograd::AccumulateGrad":
            leaf = node.variable
            leaves.append(leaf)
            names.append(numbers.get(id(leaf)) if numbers else None)
            continue
        if name == "CheckpointFunctionBackward":
            reentrant = True
        elif name == "_DDPSinkBackward" and node.ddp_weakref().static_graph:
            # It is in the graph until the first backward, after which all is well.
            raise RuntimeError(
                "DistributedDataParallel(static_graph=True) reduces gradients in the first backward it sees: here "
                "an ascent; leave static_graph out, or take the first step with ERM"
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return Graph(tuple(leaves), reentrant, hash(tuple(names)))


REENTRANT = (
    "gradient checkpointing with use_reentrant=True hides parameters from torch.autograd.grad; use "
    "use_reentrant=False, with transformers "
    "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
)


def reaches(tensors: Iterable[Tensor], ids: Container[int], passed: set[Any]) -> bool:
    """Whether the graph of some tensors ends in one of these leaves.

    Args:
        tensors: The tensors.
        ids: Of the leaves, by ``id``.
        passed: Nodes that are known to lead to none of them, and are not walked again; those of this walk are added
            where it finds none.
    """
    waiting: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    if any(t.grad_fn is None and id(t) in ids for t in tensors):
        return True
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node in passed:
            continue
        if id(getattr(node, "variable", None)) in ids:
            return True
        following = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= following
        waiting += following
    passed |= seen
    return False


def next_edges(node: Any, output: int) -> list[tuple[Any, int]]:
    """The places in a graph that one output of a node is computed from."""
    following = node.next_functions
    if node.name() == "_DDPSinkBackward" and len(following) > 1:  # which passes every output of a model on
        following = following[output : output + 1]
    return [(before, number) for before, number in following if before is not None]
