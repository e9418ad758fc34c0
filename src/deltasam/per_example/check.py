"""Checks of a record against autograd: that it explains the ordinary gradient, and that examples keep apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltasam import weight_space
from deltasam.per_example.record import Use
from deltasam.weight_space import HALVES


def coupling_layers(model: nn.Module) -> dict[str, str]:
    """Modules in which the examples of a batch always meet: why, by name."""
    return {
        name: f"{type(module).__name__} in training mode normalises over the batch, so examples meet in it; call "
        f"eval() on it, or use GroupNorm or LayerNorm"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
    }


def uneven_uses(uses: Sequence[Use], examples: int, names: Mapping[int, str]) -> dict[str, str]:
    """Parameters that meet a number of rows which the examples do not divide: why, by name."""
    return {
        names[id(p)]: f"meets {use.shape[0]} rows, which {examples} examples do not divide; the examples must be the "
        f"first axis, each with as many rows"
        for use in uses
        for p in use.parameters
        if use.shape[0] % examples
    }


def meeting_uses(uses: Sequence[Use], examples: int, names: Mapping[int, str]) -> dict[str, str]:
    """Parameters after whose use examples meet, inside the model: why, by name.

    The outputs of every second example are taken, times random numbers: nothing of the others may come back. The loss
    is not looked at: there examples may meet.
    """
    generator = torch.Generator().manual_seed(0)
    outputs = [use.output for use in uses]
    reason = (
        "after it examples meet inside the model (normalisation over the batch, packed sequences, an axis in front of "
        "that of the examples)"
    )
    found: dict[str, str] = {}
    for parity in (0, 1):
        sources = (_rows_of_every_second(use, examples, parity, generator) for use in uses)
        found.update(_names_reached(uses, examples, parity, outputs, list(sources), reason, names))
    return found


def scattered_uses(losses: Tensor, uses: Sequence[Use], examples: int, names: Mapping[int, str]) -> dict[str, str]:
    """Parameters whose rows the loss of another example depends on: why, by name.

    Where the model was not called with one row per example, that means that rows are laid out in another way.
    """
    reason = (
        f"meets rows that do not belong to {examples} examples in turn, as many to each (packed or unpadded sequences, "
        f"an axis in front of that of the examples)"
    )
    found: dict[str, str] = {}
    for parity in (0, 1):
        half = losses[parity::2].sum()
        found.update(_names_reached(uses, examples, parity, [half], None, reason, names))
    return found


def unexplained(
    parameters: Mapping[str, nn.Parameter],
    expected: Sequence[Tensor | None],
    found: Iterable[Tensor | None],
    uses: Sequence[Use],
) -> dict[str, str]:
    """Parameters whose gradient the record does not explain: why, by name.

    Args:
        parameters: By name.
        expected: Their gradients by autograd.
        found: Their gradients by the record, summed over the examples.
        uses: The record.
    """
    coarse = {id(p) for use in uses for p in use.parameters if use.like.dtype in HALVES}
    wrong: dict[str, str] = {}
    # Measured also against the whole gradient: a key's bias, say, has a gradient of 0 but for rounding.
    total = weight_space.norm(expected)
    if not total.isfinite():
        return {}  # a loss scale was too large; the next batch will show
    for (name, p), truth, sum_of_examples in zip(parameters.items(), expected, found, strict=True):
        hidden = truth is not None and sum_of_examples is None  # though the gradient may be 0 today
        truth = torch.zeros_like(p) if truth is None else truth
        other = torch.zeros_like(truth) if sum_of_examples is None else sum_of_examples.to(truth.dtype)
        # Under autocast the gradient of a float32 parameter is computed in half precision.
        tolerance = 0.1 if id(p) in coarse or p.dtype in HALVES else 1e-6 if p.dtype == torch.float64 else 1e-3
        if hidden or not (other - truth).norm() <= tolerance * (truth.norm() + 0.01 * total):
            wrong[name] = "has a gradient that its uses do not explain: a function that PyTorch does not show uses it"
    return wrong


def _names_reached(
    uses: Sequence[Use],
    examples: int,
    parity: int,
    roots: Sequence[Any],
    sources: list[Tensor] | None,
    reason: str,
    names: Mapping[int, str],
) -> dict[str, str]:
    """Parameters to whose rows of the other examples something comes back from the roots, and the reason."""
    if not uses:
        return {}
    outputs = [use.output for use in uses]
    returned = torch.autograd.grad(roots, outputs, sources, retain_graph=True, allow_unused=True)
    return {
        names[id(p)]: reason
        for use, b in zip(uses, returned, strict=True)
        if b is not None and b.reshape(examples, -1)[1 - parity :: 2].any()
        for p in use.parameters
    }


def _rows_of_every_second(use: Use, examples: int, parity: int, generator: torch.Generator) -> Tensor:
    """Random numbers of the shape of what came out, 0 for every second example."""
    rows = torch.randn(examples, use.shape.numel() // examples, generator=generator)
    rows[1 - parity :: 2] = 0
    return rows.view(use.shape).to(use.like)
