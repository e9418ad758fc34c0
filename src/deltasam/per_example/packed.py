"""Detection of packed batches, in which a row holds several examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def refuse_packed(batch: object, method: str) -> None:
    """Raise if a row of a batch holds several examples, which a per-example method would treat as one.

    Packing is recognised by position ids that restart within a row, ``seq_idx``, cumulative sequence lengths
    (``cu_seq_lens_q``, ``cu_seqlens``), or an attention mask that numbers the sequences. A packed batch without any of
    these (a mask of four axes, texts that are simply concatenated) is not recognised.

    Args:
        batch: The model's inputs: mappings, possibly nested, or sequences of them.
        method: Spec or name of the calling method, for the error message.

    Raises:
        ValueError: A row holds several examples.
    """
    refuse_signs(signs_of_packing(batch), method)


def refuse_signs(signs: Iterable[tuple[Tensor | bool, str]], method: str) -> None:
    """Raise if one of the signs found by ``signs_of_packing`` is set; this synchronises with the device.

    Raises:
        ValueError: A row holds several examples.
    """
    for found, sign in signs:
        if found:
            raise packed_error(method, sign)


def packed_error(method: str, sign: str) -> ValueError:
    """The error for a packed batch.

    Args:
        method: Spec or name of the calling method.
        sign: Description of the sign that reveals it.
    """
    return ValueError(
        f"{method} works on single examples, but a row of the batch holds several ({sign}), so they would be treated "
        f"as one; pad instead of packing (DataCollatorWithPadding, DataCollatorForLanguageModeling; packing=False, "
        f"padding_free=False), or use a method with one perturbation per batch (sam, asam)"
    )


def _mappings(batch: object) -> Iterator[Mapping[Any, Any]]:
    if isinstance(batch, Mapping):
        yield batch
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from _mappings(part)


def signs_of_packing(batch: object) -> list[tuple[Tensor | bool, str]]:
    """Signs that rows of a batch hold several examples: for each, whether it is present [], and a description."""
    return [sign for inputs in _mappings(batch) for sign in _signs(inputs)]


def _signs(inputs: Mapping[Any, Any]) -> Iterator[tuple[Tensor | bool, str]]:
    for name, value in inputs.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            continue
        if name.startswith("cu_seq") and value.numel() > 2:
            yield True, f"{name} gives the starts of {value.numel() - 1}"
        if name.endswith("seq_idx") and value.ndim == 2:
            yield (value != value[:, :1]).any(), f"{name} numbers them"
        if name.endswith("position_ids") and value.ndim == 2:
            mask = inputs.get(name.removesuffix("position_ids") + "attention_mask")
            yield _start_again(value, mask), f"its {name} restart"
        numbers = name.endswith("attention_mask") and value.ndim == 2 and not value.is_floating_point()
        if numbers and value.numel():
            yield value.max() > 1, f"{name} numbers them"


def _start_again(positions: Tensor, mask: Tensor | None) -> Tensor:
    """Whether position ids [n, T] fail to increase somewhere within a row []; padding in the mask [n, T] is ignored."""
    again = positions.diff(dim=1) <= 0
    if isinstance(mask, Tensor) and mask.shape == positions.shape:
        real = mask != 0
        again = again & real[:, 1:] & real[:, :-1]
    return again.any()
