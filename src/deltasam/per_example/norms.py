"""Exact gradient norms of every example, without the gradients."""

from __future__ import annotations

from torch import Tensor, nn

from deltasam.guards import WeightStore
from deltasam.outputs import losses_of
from deltasam.passes import Closure, Passes
from deltasam.per_example.engine import Engine
from deltasam.runtime import Runtime


def per_example_grad_norms(model: nn.Module, closure: Closure, *, m: int = 1, runtime: Runtime | None = None) -> Tensor:
    """Euclidean norm of every example's gradient over all trainable parameters [n].

    One forward and one backward to the layers' outputs; no gradient of a parameter is formed, ``.grad`` is left alone.
    The random state and the buffers are put back, so that a training step after it sees the same dropout masks.
    Every call checks the result against autograd, which costs about two passes more.

    Args:
        model: The model.
        closure: Runs one forward pass and returns one loss per example [n], or a scalar loss, of which the norms
            are then the shares of the examples.
        m: Examples per group: norms of the summed gradients of m consecutive examples [n / m].
        runtime: How a loss becomes gradients; plain PyTorch unless given.

    Raises:
        NotCoveredError: The norms cannot be had exactly; names the parameters.
        ValueError: m does not divide the number of examples.
    """
    passes = Passes(model, closure, runtime or Runtime(), WeightStore())
    engine = Engine(model)
    try:
        output, record = engine.first(passes)
        return engine.gradients(passes, record, losses_of(output), m).norms()
    finally:
        passes.abandon()
