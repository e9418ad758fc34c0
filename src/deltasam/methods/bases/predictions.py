"""Predictions of a pass, their weights in the loss, and the divergence between those of two passes.

A weighted sum of cross entropies, ``L = sum_i w_i CE(softmax(x_i), t_i)``, has the Hessian
``w_i (diag(p_i) - p_i p_i^T)`` in its logits, whatever the targets ``t_i``: hard, smoothed, shifted by one, masked. So
the weights, including every factor by which a trainer scaled the loss, are read off the loss itself; and a loss that is
not such a sum is detected. For squared errors, ``L = sum_i w_i (x_i - y_i)^2``, the second derivative is ``2 w_i``.

Shapes: B stands for any prediction axes, C for classes; logits [B, C], weights [B].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from deltasam.core.closure import part_of

# Nodes that may lie between the logits a model returns and those its loss is computed from; they change no value.
_PASSING = frozenset(["ToCopyBackward0", "AliasBackward0", "_DDPSinkBackward"])


@dataclass(frozen=True)
class Predictions:
    """Logits, and the weight of each prediction's own loss in the closure's loss.

    Attributes:
        logits: Logits [B, C]; C = 1: numbers, not distributions.
        weights: Weights [B], detached.
    """

    logits: Tensor
    weights: Tensor

    @property
    def are_numbers(self) -> bool:
        """Whether a prediction is a number (regression) and not a distribution."""
        return self.logits.shape[-1] == 1

    def divergence(self, other: Tensor) -> Tensor:
        """Weighted sum [] over the predictions of ``KL(p, q) + KL(q, p)``, or of ``(x - y)^2`` if they are numbers.

        Args:
            other: The logits of another pass on the same batch.

        Raises:
            ValueError: The logits have another shape.
        """
        x, y = _wide(self.logits), _wide(_with_classes(other))
        if x.shape != y.shape:
            raise ValueError(f"two passes on one batch gave logits of shapes {list(x.shape)} and {list(y.shape)}")
        apart = (x - y).square().squeeze(-1) if self.are_numbers else _symmetric_kl(x, y)
        return (self.weights * apart).sum()

    def detached(self) -> Predictions:
        """The same predictions, with logits detached from the graph."""
        return Predictions(self.logits.detach(), self.weights)


def _symmetric_kl(x: Tensor, y: Tensor) -> Tensor:
    lowest = torch.finfo(x.dtype).min  # a class masked by -inf in both contributes 0
    p, q = (z.log_softmax(-1).clamp(min=lowest) for z in (x, y))
    # One product of differences instead of two divergences: no cancellation where p and q are close.
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Any]]:
    """Collect the model's outputs, one per call."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        yield outputs
    finally:
        hook.remove()


def logits_of(output: object, seen: list[Any], method: str) -> Tensor:
    """The logits of a pass: the closure's if it returned some, else the model's.

    Args:
        output: The closure's output.
        seen: The model's outputs, one per call.
        method: Name of the calling method, for error messages.

    Raises:
        ValueError: There are no logits, or the model ran several times.
    """
    logits = part_of(output, "logits")
    if logits is None and len(seen) == 1:
        logits = seen[0] if isinstance(seen[0], Tensor) else part_of(seen[0], "logits")
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{method} compares predictions, but the closure returned no logits, and the model "
            + (f"ran {len(seen)} times" if len(seen) != 1 else f"returned {type(seen[0]).__name__} without logits")
            + "; return deltasam.Output(loss, logits)"
        )
    return logits


def predictions_of(output: object, seen: list[Any], loss: Tensor, method: str) -> Predictions:
    """The predictions of the first pass with their weights: the closure's if it returned some, else from its loss.

    Args:
        output: The closure's output.
        seen: The model's outputs, one per call.
        loss: The closure's mean loss [].
        method: Name of the calling method, for error messages.

    Raises:
        ValueError: There are no logits, the given weights do not match them, or no weights can be derived.
    """
    returned = logits_of(output, seen, method)
    logits, weights = _with_classes(returned), part_of(output, "logit_weights")
    if weights is None:
        weights = _found_weights(loss, returned)
        if weights is None:
            raise ValueError(
                f"{method} needs the weight of each prediction's loss, but the loss is not a weighted sum of cross "
                f"entropies (or of squared errors, where a prediction is one number) of the logits "
                f"{list(returned.shape)}; return deltasam.Output(loss, logits, logit_weights=...), for the mean over n "
                f"examples torch.full((n,), 1 / n)"
            )
    if weights.shape != logits.shape[:-1]:
        raise ValueError(
            f"{method}: logit_weights have shape {list(weights.shape)}, but the predictions have shape "
            f"{list(logits.shape[:-1])}"
        )
    return Predictions(logits, weights.detach())


def _found_weights(loss: Tensor, logits: Tensor) -> Tensor | None:
    """Weights [B] of the predictions; None if the loss is not a weighted sum of cross entropies or squared errors.

    A prediction in which the loss has no curvature, since it is masked or certain to the last bit, has weight 0. For a
    number, slope without curvature means an absolute error, or the linear part of the Huber loss: None.
    """
    head, slope = _slope(loss, logits)
    if head is None or slope is None:
        return None
    x = _wide(_with_classes(logits.detach()))
    p = x.softmax(-1)
    largest = p.argmax(-1, keepdim=True)
    unit = torch.zeros_like(p).scatter_(-1, largest, 1.0)
    scale = _scale(slope) if x.shape[-1] > 1 else 1.0
    curvature = _along(slope, head, unit.view_as(slope) * scale, create_graph=x.shape[-1] <= 2)
    if curvature is None:
        return None
    bent = _wide(curvature.detach()).view_as(x) / scale
    weights = bent.squeeze(-1) / 2 if x.shape[-1] == 1 else _of_cross_entropy(bent, p, unit)
    if bool(weights.isfinite().all()) and not _explains(weights, bent, p, unit, slope.detach()):
        return None
    if x.shape[-1] <= 2:  # two entries fit other losses too; third derivatives tell them apart
        third = _along(curvature, head, unit.view_as(slope))
        bends = torch.zeros_like(x) if third is None else _wide(third).view_as(x) / scale
        expected = 0.0 if x.shape[-1] == 1 else (bent * unit * (1 - 2 * p)).sum(-1)
        if not _close((bends * unit).sum(-1), expected, weights, slope.dtype):
            return None
    return weights


def _of_cross_entropy(bent: Tensor, p: Tensor, unit: Tensor) -> Tensor:
    """Weights from the entries ``-w p_c p_m`` off the diagonal, m the most likely class: exact if m is near certain."""
    others = (p * (1 - unit)).sum(-1)
    weights = -(bent * (1 - unit)).sum(-1) / ((p * unit).sum(-1) * others)
    return torch.where(others > 0, weights, 0.0)


def _explains(weights: Tensor, bent: Tensor, p: Tensor, unit: Tensor, slope: Tensor) -> bool:
    """Whether the curvature is that of cross entropies (or squared errors) with these weights, and none is negative."""
    if p.shape[-1] == 1:
        flat = slope.reshape(bent.shape).squeeze(-1) == 0
        return bool(((weights > 0) | (weights == 0) & flat).all())
    top = (p * unit).sum(-1, keepdim=True)
    expected = -weights[..., None] * p * top * (1 - unit)
    at_top = ((bent * unit).sum(-1) + expected.sum(-1)).abs()
    beside = (bent * (1 - unit) - expected).abs()
    limit = _tolerance(slope.dtype)
    return bool(
        (at_top.amax() <= limit * weights.abs().amax())
        & (beside.amax() <= limit * expected.abs().amax())
        & (weights >= 0).all()
    )


def _close(a: Tensor, b: Tensor | float, weights: Tensor, dtype: torch.dtype) -> bool:
    if not bool(weights.isfinite().all()):
        return True
    return bool((a - b).abs().amax() <= _tolerance(dtype) * weights.abs().amax())


def _tolerance(dtype: torch.dtype) -> float:
    coarser = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # many models compute their loss in float32
    return min(0.1, 100 * coarser)


def _slope(loss: Tensor, logits: Tensor) -> tuple[Tensor | GradientEdge | None, Tensor | None]:
    """The graph node of the logits that the loss depends on, and the gradient of the loss with respect to it.

    A model may return its logits cast to float32, and have computed the loss from the logits before the cast.
    """
    for edge in edges_of(logits):
        head = logits if edge == get_gradient_edge(logits) else edge
        slope: Tensor | None = torch.autograd.grad(loss, head, create_graph=True, allow_unused=True)[0]
        if slope is not None:
            return head, slope if slope.requires_grad else None
    return None, None


def edges_of(logits: Tensor) -> Iterator[GradientEdge]:
    """The place of the logits in the graph, and the places before it that hold the same values."""
    edge = get_gradient_edge(logits) if logits.requires_grad else None
    while edge is not None:
        yield edge
        edge = _before(edge)


def _before(edge: GradientEdge) -> GradientEdge | None:
    node = edge.node
    if node.name() not in _PASSING:
        return None
    following = node.next_functions
    before, number = following[edge.output_nr if len(following) > 1 else 0]
    return None if before is None else GradientEdge(before, number)


def _along(
    slope: Tensor, head: Tensor | GradientEdge, direction: Tensor, *, create_graph: bool = False
) -> Tensor | None:
    if not slope.requires_grad:
        return None
    direction = direction.to(slope.dtype)
    return torch.autograd.grad(slope, head, direction, retain_graph=True, create_graph=create_graph, allow_unused=True)[
        0
    ]


def _scale(slope: Tensor) -> float:
    """A power of two that scales the curvature of cross entropies (at most the slope) into float16's precise range."""
    largest = float(slope.detach().abs().amax()) if slope.dtype == torch.float16 else 0.0
    return 2.0 ** min(14, 13 - math.frexp(largest)[1]) if 0 < largest < math.inf else 1.0


def _with_classes(logits: Tensor) -> Tensor:
    return logits[:, None] if logits.ndim == 1 else logits


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
