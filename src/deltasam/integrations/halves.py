"""Batches of pairs: one row per pair in each call of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class InHalves:
    """Runs a model on each half of a batch of n first and n second parts of pairs, in two separate calls.

    The result is that of one call, but row i of every call belongs to pair i, as per-example methods require.

    Args:
        call: The model.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, **inputs: Any) -> Any:
        """The model's output for all 2n rows; outputs without one row per input row are dropped.

        Args:
            **inputs: ``input_ids`` [2n, T]; other inputs have as many rows, or one row per pair, which is passed to
                both calls.

        Raises:
            ValueError: An input has another number of rows.
        """
        rows = len(inputs["input_ids"])
        first, second = (self._call(**{k: _half(k, v, rows, i) for k, v in inputs.items()}) for i in range(2))
        together = type(first)()
        for name, value in first.items():
            if isinstance(value, Tensor) and value.ndim:  # a mean over one half's rows is not that of the batch
                together[name] = torch.cat([value, second[name]])
        return together


def _half(name: str, value: object, rows: int, which: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or 2 * len(value) == rows:
        return value
    if len(value) != rows:
        raise ValueError(
            f"{name} {list(value.shape)} cannot be split into pairs: the batch has {rows} rows, the chosen ones and "
            f"the rejected ones; use a method with one perturbation per batch (sam, asam)"
        )
    return value.chunk(2)[which]
