"""Batches of pairs: one row per pair in each call of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class InHalves:
    """Called with the rows of n first parts and those of n second parts below each other, it runs each half by itself.

    The same as one call, but that row i of every call belongs to pair i: that is how per-example methods know what an
    example is.

    Args:
        call: The model.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, **inputs: Any) -> Any:
        """What the model returns for all 2n rows, as far as it is one row for each.

        Args:
            **inputs: ``input_ids`` [2n, T]; others have as many rows, or one per pair, which both calls are given.

        Raises:
            ValueError: An input has another number of rows.
        """
        rows = len(inputs["input_ids"])
        first, second = (self._call(**{k: _half(k, v, rows, i) for k, v in inputs.items()}) for i in range(2))
        together = type(first)()
        for name, value in first.items():
            if isinstance(value, Tensor) and value.ndim:  # a mean over the rows of one half is not the whole's
                together[name] = torch.cat([value, second[name]])
        return together


def _half(name: str, value: Any, rows: int, which: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or 2 * len(value) == rows:
        return value
    if len(value) != rows:
        raise ValueError(
            f"{name} {list(value.shape)} cannot be divided into pairs: the batch has {rows} rows, the chosen ones and "
            f"the rejected ones; use a method with one perturbation per batch (sam, asam)"
        )
    return value.chunk(2)[which]
