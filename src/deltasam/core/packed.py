"""Packed batches: several examples stand one after the other in a row, so a row is not an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def refuse_packed(batch: Any, method: str) -> None:
    """Raise where a row of a batch holds several examples: a method would take them for one.

    They show in position ids that start again within a row, in ``seq_idx``, in cumulative sequence lengths
    (``cu_seq_lens_q``, ``cu_seqlens``), and in an attention mask that numbers the sequences. A packed batch without
    any of these (a mask of four axes, texts that are simply concatenated) does not show.

    Args:
        batch: What the model is called with: mappings, maybe nested, or sequences of them.
        method: The spec or name of the method that asks, for the error.

    Raises:
        ValueError: A row holds several examples.
    """
    refuse_signs(signs_of_packing(batch), method)


def refuse_signs(signs: Iterable[tuple[Tensor | bool, str]], method: str) -> None:
    """The same for what ``signs_of_packing`` has found: here the device is waited for.

    Raises:
        ValueError: A row holds several examples.
    """
    for found, sign in signs:
        if found:
            raise packed_error(method, sign)


def packed_error(method: str, sign: str) -> ValueError:
    """The error for a packed batch.

    Args:
        method: As in ``refuse_packed``.
        sign: What shows it.
    """
    return ValueError(
        f"{method} looks at single examples, but a row of the batch holds several ({sign}), so they would be taken for "
        f"one; pad instead of packing (DataCollatorWithPadding, DataCollatorForLanguageModeling; packing=False, "
        f"padding_free=False), or use a method with one perturbation per batch (sam, asam)"
    )


def _mappings(batch: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(batch, Mapping):
        yield batch
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from _mappings(part)


def signs_of_packing(batch: Any) -> list[tuple[Tensor | bool, str]]:
    """What would show that rows of a batch hold several examples: whether it does [], and in words."""
    return [sign for inputs in _mappings(batch) for sign in _signs(inputs)]


def _signs(inputs: Mapping[Any, Any]) -> Iterator[tuple[Tensor | bool, str]]:
    for name, value in inputs.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            continue
        if name.startswith("cu_seq") and value.numel() > 2:
            yield True, f"{name} tells where {value.numel() - 1} begin"
        if name.endswith("seq_idx") and value.ndim == 2:
            yield (value != value[:, :1]).any(), f"{name} numbers them"
        if name.endswith("position_ids") and value.ndim == 2:
            mask = inputs.get(name.removesuffix("position_ids") + "attention_mask")
            yield _start_again(value, mask), f"its {name} start again"
        numbers = name.endswith("attention_mask") and value.ndim == 2 and not value.is_floating_point()
        if numbers and value.numel():
            yield value.max() > 1, f"{name} numbers them"


def _start_again(positions: Tensor, mask: Tensor | None) -> Tensor:
    """Whether position ids [n, T] do not grow from one token of a row to the next []; padding [n, T] does not count."""
    again = positions.diff(dim=1) <= 0
    if isinstance(mask, Tensor) and mask.shape == positions.shape:
        real = mask != 0
        again = again & real[:, 1:] & real[:, :-1]
    return again.any()
