"""Checks of a record against autograd: that it explains the ordinary gradient, and that examples keep apart."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltasam import weight_space
from deltasam.per_example.record import Place, Use
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

    The outputs of half of the examples are taken, times random numbers: nothing of the others may come back. The loss
    is not looked at: there examples may meet.
    """
    outputs = [use.output for use in uses]
    reason = (
        "after it examples meet inside the model (normalisation over the batch, packed sequences, an axis in front of "
        "that of the examples)"
    )
    found: dict[str, str] = {}
    for half in _halves(examples):
        sources = [_random_rows(use, half) for use in uses]
        reached = _reached(uses, outputs, sources, half)
        found.update((names[id(p)], reason) for use, (_, others) in zip(uses, reached, strict=True) if others
                     for p in use.parameters)  # fmt: skip
    return found


def scattered_uses(losses: Tensor, uses: Sequence[Use], examples: int) -> set[int]:
    """Which uses have rows that the loss of another example depends on; their numbers.

    Either examples meet in the loss, or rows are laid out in another way.
    """
    found: set[int] = set()
    for half in _halves(examples):
        reached = _reached(uses, [losses[half.to(losses.device)].sum()], None, half)
        found.update(i for i, (_, others) in enumerate(reached) if others)
    return found


def several_rows_uses(loss: Tensor, uses: Sequence[Use], examples: int) -> set[int]:
    """Which uses that a scalar loss depends on have several rows for each example; their numbers."""
    reached = _reached(uses, [loss], None, torch.ones(examples, dtype=torch.bool))
    return {i for i, (some, _) in enumerate(reached) if some and uses[i].shape[0] != examples}


def misplaced_uses(
    uses: Sequence[Use],
    outputs: Sequence[Place],
    examples: int,
    names: Mapping[int, str],
    doubtful: Container[int],
) -> dict[str, str]:
    """Parameters whose rows are not known to belong to the examples in turn, as many to each: why, by name.

    That they do shows in what the model returns: a row of it depends on rows of its own example alone.

    Args:
        uses: The record.
        outputs: What the model returned, one row per example.
        examples: Their number.
        names: Of parameters, by id.
        doubtful: The uses of which the loss does not show it.
    """
    wrong = (
        f"meets rows that do not belong to {examples} examples in turn, as many to each (packed or unpadded sequences, "
        f"an axis in front of that of the examples)"
    )
    unknown = (
        f"meets rows of which nothing shows that they belong to {examples} examples in turn: neither losses of one "
        f"example each nor what the model returns; return one of them"
    )
    found: dict[str, str] = {}
    for i, (use, apart) in enumerate(zip(uses, _apart(uses, outputs, examples), strict=True)):
        if apart is False or (apart is None and i in doubtful):
            found.update((names[id(p)], unknown if apart is None else wrong) for p in use.parameters)
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


def _apart(uses: Sequence[Use], outputs: Sequence[Place], examples: int) -> list[bool | None]:
    """Of each use whether some output depends on it row by row; None where none depends on it."""
    verdicts: list[bool | None] = [None] * len(uses)
    for output in outputs:
        seen = [_reached(uses, [output.output], [_random_rows(output, half)], half) for half in _halves(examples)]
        for i, reached in enumerate(zip(*seen, strict=True)):
            if any(own or others for own, others in reached):
                verdicts[i] = verdicts[i] or not any(others for _, others in reached)
    return verdicts


def _halves(examples: int) -> Iterator[Tensor]:
    """Halves of the examples [examples]: for any two examples, some have the one and not the other."""
    numbers = torch.arange(examples)
    for bit in range((examples - 1).bit_length()):
        half = (numbers >> bit) % 2 == 1
        yield half
        yield ~half


def _reached(
    uses: Sequence[Use], roots: Sequence[Any], sources: list[Tensor] | None, half: Tensor
) -> list[tuple[bool, bool]]:
    """Of each use whether something comes back from the roots to the rows of a half, and to those of the others."""
    if not uses:
        return []
    outputs = [use.output for use in uses]
    returned = torch.autograd.grad(roots, outputs, sources, retain_graph=True, allow_unused=True)
    return [(False, False) if b is None else (_any(b, half), _any(b, ~half)) for b in returned]


def _any(b: Tensor, rows: Tensor) -> bool:
    """Whether the gradient of some examples is anything but 0. What is not finite shows nothing."""
    return bool(b.reshape(len(rows), -1)[rows.to(b.device)].nan_to_num(0.0, 0.0, 0.0).any())


def _random_rows(place: Place, half: Tensor) -> Tensor:
    """Random numbers of the shape of what came out, 0 but for half of the examples."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(half), place.shape.numel() // len(half), generator=generator)
    rows[~half] = 0
    return rows.view(place.shape).to(place.like)
