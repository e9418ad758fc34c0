"""One loss per example from logits and labels, checked against the trainer's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100


@dataclass(frozen=True)
class TrainerOutput:
    """Output of a trainer's closure.

    Attributes:
        loss: The loss [] as passed to the backward.
        example_losses: Computes one loss per example [n], whose mean is ``loss``.
    """

    loss: Tensor
    example_losses: Callable[[], Tensor]


def example_losses(
    output: object, labels: Tensor | None, loss: Tensor, *, items: object, smoothing: float, scales: Sequence[float]
) -> Tensor:
    """One loss per example [n], with the trainer's loss as their mean.

    Few losses of logits and labels are common: squared error, binary cross entropy, cross entropy of classes, of
    tokens, of next tokens. The one that reproduces the trainer's loss is used; if none does, that is an error.

    Args:
        output: The model's output.
        labels: Labels of the batch.
        loss: The trainer's loss [].
        items: Number of tokens or examples that a sum over them was divided by; None: that of this batch.
        smoothing: Label smoothing.
        scales: Factors by which the loss may have been multiplied.

    Raises:
        ValueError: It is another loss.
    """
    logits = output.get("logits") if hasattr(output, "get") else getattr(output, "logits", None)
    ways: Iterable[tuple[Tensor, Tensor | int]] = ()
    if isinstance(logits, Tensor) and labels is not None:
        ways = _ways(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, smoothing)
    return matching(ways, loss, logits, items=items, scales=scales)


def matching(
    ways: Iterable[tuple[Tensor, Tensor | int]], loss: Tensor, head: object, *, items: object, scales: Sequence[float]
) -> Tensor:
    """One loss per example [n], computed in the one way that reproduces the trainer's loss.

    Two losses may have the same value by chance. Their gradients do not agree by chance, so these are compared too
    where a graph exists; if more than one way is left, none is used.

    Args:
        ways: Each example's contribution to a sum [n], and the divisor of the sum where it is not ``items``.
        loss: The trainer's loss [].
        head: The tensor that both losses are computed from.
        items: As in ``example_losses``.
        scales: As in ``example_losses``.

    Raises:
        ValueError: No way reproduces the loss, or more than one does.
    """
    found = [made for parts, count in ways if (made := _made_to(parts, count, loss, head, items, scales)) is not None]
    if len(found) == 1 or (found and not loss.isfinite()):  # infinite losses all match, and cause no optimizer step
        return found[0]
    raise ValueError(
        "the method needs one loss per example, and the trainer's loss is none of those that are known of logits and "
        "labels; override example_losses in your trainer, or use a method that needs a scalar loss only (sam, asam, "
        "per_instance_sam, delta_sam:weights=norms)"
    )


def _made_to(
    parts: Tensor, count: Tensor | int, loss: Tensor, head: object, items: object, scales: Sequence[float]
) -> Tensor | None:
    """The losses of a way [n], divided and scaled, if their mean is the trainer's loss; else None."""
    for divisor in (count,) if items is None else (count, items):
        for scale in scales:
            losses = parts * (len(parts) * scale) / torch.as_tensor(divisor).to(parts)  # an int would give float32
            if _close(losses.detach().mean(), loss.detach(), loss.dtype) and _same_gradient(losses.mean(), loss, head):
                return losses.to(loss.dtype)
    return None


def _close(a: Tensor, b: Tensor, *dtypes: torch.dtype) -> bool:
    tolerance = min(0.03, 100 * max(torch.finfo(d).eps for d in dtypes))
    distance, length = torch.linalg.vector_norm(a.double() - b.double()), torch.linalg.vector_norm(b.double())
    return bool(distance <= tolerance * length) or not bool(length.isfinite() or a.isfinite().all())


def _same_gradient(a: Tensor, b: Tensor, head: object) -> bool:
    """Whether two losses have the same gradient with respect to a tensor; True where there is no graph."""
    if not (isinstance(head, Tensor) and head.requires_grad and a.requires_grad and b.requires_grad):
        return True
    of_a, of_b = (torch.autograd.grad(x, head, retain_graph=True, allow_unused=True)[0] for x in (a, b))
    return of_a is None or of_b is None or _close(of_a, of_b, b.dtype, head.dtype)


def _ways(logits: Tensor, labels: Tensor, smoothing: float) -> Iterator[tuple[Tensor, Tensor | int]]:
    """Each example's contribution to the loss [n], and the divisor of their sum, for every known loss."""
    n = len(logits)
    if labels.is_floating_point():
        if logits.numel() == labels.numel():
            yield (logits.view_as(labels) - labels).square().reshape(n, -1).sum(1), labels.numel()
            if labels.ndim > 1:
                bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
                yield bce.reshape(n, -1).sum(1), labels.numel()
        return
    if logits.shape[:-1] == labels.shape:
        yield _cross_entropy(logits, labels, smoothing)
        if labels.ndim == 2:
            yield _cross_entropy(logits[:, :-1], labels[:, 1:], smoothing)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    counted = labels != _IGNORED
    losses = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=_IGNORED, label_smoothing=smoothing, reduction="none"
    )
    return losses.view(len(labels), -1).sum(1), counted.sum()  # with none counted, the trainer's mean is NaN too
