"""What plain PyTorch computes of a closure, with nothing in between: the side of a check that knows no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.closure import losses_of
from deltasam.core.passes import Passes
from deltasam.core.vectors import wide
from deltasam.per_example.recorder import tensors_of

LOSSES = 0
"""The place of the losses in what a run shows."""


@contextmanager
def returned_by(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the tensors that a model returns are put into the list."""
    found: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, __, output: found.extend(tensors_of(output)))
    try:
        yield found
    finally:
        hook.remove()


def separating(shown: Sequence[Tensor], examples: int, params: Sequence[nn.Parameter]) -> tuple[int, ...]:
    """Which of the tensors with a row for every example stand between the parameters and the loss; () for none.

    What the model returned, if the loss depends on parameters through it alone; else the losses, if there is one for
    each example.

    Args:
        shown: The loss [] or losses [n], and after it what the model returned.
        examples: Their number.
        params: The parameters.
    """
    losses = shown[LOSSES]
    edges = {(t.grad_fn, t.output_nr): i for i, t in enumerate(shown) if i != LOSSES and t.ndim and len(t) == examples}
    edges.pop((losses.grad_fn, losses.output_nr), None)  # the model itself returns the losses
    found, reaches_parameters = _first_met([(losses.grad_fn, losses.output_nr)], edges, params)
    behind = [(node, 0) for edge in found for node, _ in [edge]]
    nested = any(_first_met(list(node.next_functions), edges, params)[0] for node, _ in behind)
    if found and not reaches_parameters and not nested:
        return tuple(sorted(edges[edge] for edge in found))
    return (LOSSES,) if losses.ndim else ()


def _first_met(roots: list[Any], edges: dict[Any, int], params: Sequence[nn.Parameter]) -> tuple[set[Any], bool]:
    """The edges that are met first on all ways from the roots, and whether a parameter is reached beside them."""
    trained, found, seen, reaches = {id(p) for p in params}, set(), set(), False
    while roots:
        edge = roots.pop()
        if edge in edges:
            found.add(edge)
        elif edge[0] is not None and edge[0] not in seen:
            seen.add(edge[0])
            reaches |= id(getattr(edge[0], "variable", None)) in trained
            roots.extend(edge[0].next_functions)
    return found, reaches


@dataclass(frozen=True)
class Plain:
    """An ordinary forward and backward at the weights as they are.

    Attributes:
        shown: The loss [] or losses [n], and after it what the model returned, without their graphs.
        total: Gradient of the (scaled) sum of the losses, one tensor per trained parameter.
        through: The places in ``shown`` that the loss depends on parameters through; see ``separating``.
        slopes: Gradient of the sum of the losses for each of these, without the scale.
        own: ``times`` the part of ``total`` that goes through the rows of the drawn examples.
        rest: ``times`` the part that goes through the other rows, where it was asked for; else empty.
        times: What the loss is multiplied with where these parts are taken: a backward that is not linear (a hook that
            clips) does not give so many times the gradient.
    """

    shown: list[Tensor]
    total: list[Tensor | None]
    through: tuple[int, ...]
    slopes: list[Tensor]
    own: list[Tensor | None]
    rest: list[Tensor | None]
    times: float


def plain_run(
    model: nn.Module,
    passes: Passes,
    examples: int,
    drawn: slice,
    times: float,
    whole: Sequence[nn.Parameter] | None = None,
    *,
    with_rest: bool = False,
) -> Plain:
    """Run the closure once more, untouched.

    Args:
        model: The model.
        passes: Of the step; the first one has run.
        examples: The number of examples.
        drawn: Those whose part of the gradient is wanted.
        times: See ``Plain``.
        whole: The weights that are used where those of the model are sharded: ``total`` is of these.
        with_rest: Whether the part of the others is wanted as well.
    """
    with returned_by(model) as returned, passes.at() as point:
        shown = [losses_of(point.output), *returned]
        del point
        loss, scale = shown[LOSSES].sum(), passes.loss_scale()
        # Sharded weights cannot be moved for one example of one process.
        through = () if passes.sharded else separating(shown, examples, passes.params)
        tensors = [shown[i] for i in through]
        found = passes.grad(loss, tensors, retain_graph=True) if tensors else []
        # In float32 or wider: without the scale they may be too small for half precision.
        slopes = [wide(t.new_zeros(t.shape) if s is None else s) / scale for t, s in zip(tensors, found, strict=True)]
        total = passes.grad(loss, whole, retain_graph=bool(through))
        with_rest &= bool(through)
        mine = through_rows(tensors, slopes, drawn) if through else loss
        own = passes.grad(times * mine, retain_graph=with_rest) if through else []
        others = torch.tensor([i for i in range(examples) if i not in range(examples)[drawn]], device=loss.device)
        rest = passes.grad(times * through_rows(tensors, slopes, others)) if with_rest else []
        return Plain([t.detach() for t in shown], total, through, slopes, own, rest, times)


def moved_run(
    model: nn.Module, passes: Passes, plain: Plain, ascent: vectors.Vector, factor: float, drawn: slice
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Run the closure with all weights moved as those of the drawn examples are.

    Returns:
        The rows of the drawn examples, and ``plain.times`` the gradient of ``slopes`` times these rows, scaled as a
        loss is.
    """
    with returned_by(model) as returned, passes.at(ascent, factor) as point:
        shown = [losses_of(point.output), *returned]
        del point
        tensors = [shown[i] for i in plain.through]
        rows = [t[drawn].detach() for t in tensors]
        return rows, passes.grad(plain.times * through_rows(tensors, plain.slopes, drawn))


def through_rows(tensors: Sequence[Tensor], slopes: Sequence[Tensor], rows: slice | Tensor) -> Tensor:
    """``sum slopes * tensors`` [] over some rows: its gradient is the loss's part that goes through these."""
    parts = [(t[rows].to(s.dtype) * s[rows]).sum() for t, s in zip(tensors, slopes, strict=True)]
    return sum(parts[1:], start=parts[0])
