"""The outputs that a loss is made of, and the loss's gradient with respect to them.

Methods that keep the gradient with respect to the outputs from one pass and take the outputs' Jacobian in another are
right only if every path from the weights to the loss goes through these outputs. The graph of the loss shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from deltasam.core.given_gradient import standing_for
from deltasam.core.passes import Passes
from deltasam.core.torch_internals.compiled import eager, is_compiled
from deltasam.core.torch_internals.graph import next_edges
from deltasam.core.torch_internals.tensors import hooks_aside, number_of_hooks
from deltasam.method import Method
from deltasam.methods.bases.predictions import edges_of, logits_of


@contextmanager
def as_written(method: Method) -> Iterator[None]:
    """Around all passes of a step: a compiled model runs eagerly, since hooks see nothing in compiled code."""
    if is_compiled(method.model.modules()):
        method.warn_once(
            f"{type(method).__name__} runs the compiled model as it was written: compiled code does not expose what it "
            f"needs to see of a forward; to train at the speed of compiled code use SAM or ASAM"
        )
    with eager():
        yield


def slope_of(passes: Passes, output: object, loss: Tensor, method: str) -> Tensor:
    """The gradient of a loss with respect to the outputs it is made of, scaled as all gradients are.

    Args:
        passes: The passes, which watch the model.
        output: What the closure has returned in the last of them.
        loss: The loss [] of it; its graph is kept.
        method: Name of the calling method, for error messages.

    Returns:
        The gradient, in the shape of the outputs (logits).

    Raises:
        ValueError: There are no logits, or the loss is not computed from them, or also depends on weights in another
            way.
    """
    outputs = logits_of(output, passes.returned, method)
    edge = _only_way(loss, outputs, method)
    with hooks_aside(outputs):  # they act on the slope in the second pass's backward, and must not act twice
        (slope,) = passes.grad(loss, [edge], retain_graph=True)
    return cast("Tensor", slope).detach().reshape(outputs.shape)


def _only_way(loss: Tensor, outputs: Tensor, method: str) -> GradientEdge:
    """The place of the outputs in the graph of the loss, if no parameter is reached but through it."""
    known: dict[tuple[Any, int], GradientEdge] = {(edge.node, edge.output_nr): edge for edge in edges_of(outputs)}
    found: set[tuple[Any, int]] = set()
    others: list[Tensor] = []
    waiting: list[tuple[Any, int]] = [(loss.grad_fn, loss.output_nr)]
    seen = set(waiting)
    while waiting:
        node, number = waiting.pop()
        if (node, number) in known:
            found.add((node, number))
        elif isinstance(leaf := getattr(node, "variable", None), Tensor):
            if isinstance(leaf, nn.Parameter) or number_of_hooks(leaf):  # a hook may run a backward of its own
                others.append(leaf)
        else:
            further = [edge for edge in next_edges(node, number) if edge not in seen]
            seen.update(further)
            waiting.extend(further)
    if len(found) != 1 or others:
        what = "depends on weights beside the logits" if others else "does not depend on the model's logits"
        if len(found) > 1:
            what = "is computed from the logits before and after a cast"
        raise ValueError(
            f"{method} keeps the gradient of the loss with respect to the logits {list(outputs.shape)} from one pass "
            f"and takes their Jacobian in another, but the loss {what} (a term on hidden states or weights?); return "
            f"deltasam.Output(loss, logits) with all outputs that the loss is computed from, or use sam"
        )
    return known[found.pop()]


def with_slope(passes: Passes, output: object, loss: Tensor, slope: Tensor, method: str) -> Tensor:
    """The loss [] of a later pass, with a gradient in its outputs that was kept from the first.

    Args:
        passes: The passes, which watch the model.
        output: What the closure has returned in the last of them.
        loss: The loss [] of it.
        slope: The kept gradient, scaled as all gradients are.
        method: Name of the calling method, for error messages.

    Raises:
        ValueError: The outputs have another shape than those of the first pass.
    """
    outputs = logits_of(output, passes.returned, method)
    if slope.shape != outputs.shape:
        raise ValueError(f"two passes on one batch gave logits of shapes {list(slope.shape)} and {list(outputs.shape)}")
    return standing_for(loss.detach(), [outputs], [slope.to(outputs.dtype)], passes.loss_scale())
