"""How much weight each training example had, on average over its visits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltasam.data.dataset import Data
from deltasam.experiment.results import ExampleRecord

EXTREMES = 20
"""How many of the most, and of the least, weighted examples a result shows."""


class ExampleWeights:
    """Running mean of the weight of every training example; 1 is average."""

    def __init__(self, size: int) -> None:
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._visits = torch.zeros(size, dtype=torch.int64)

    def add(self, rows: list[int], weights: Tensor) -> None:
        """Count one visit of some rows, with weights [rows]."""
        self._sums[rows] += weights.detach().double().cpu()
        self._visits[rows] += 1

    def mean(self) -> list[float]:
        """Mean weight of every example that was visited."""
        return [float(self._sums[i] / self._visits[i]) for i in self._visited()]

    def records(self, data: Data) -> list[ExampleRecord]:
        """The most weighted examples, then the least weighted, heaviest first."""
        order = sorted(zip(self.mean(), self._visited(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        chosen = order[:EXTREMES] + order[EXTREMES:][-EXTREMES:]
        return [ExampleRecord(**data.describe(index), weight=weight) for weight, index in chosen]

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        return {"sums": self._sums, "visits": self._visits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._sums, self._visits = state["sums"], state["visits"]

    def _visited(self) -> list[int]:
        return self._visits.nonzero().flatten().tolist()
