"""A model with everything that a measure must leave as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Counting(nn.Module):
    """Dropout, a frozen layer, and a buffer that every forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(5, 8), nn.Linear(8, 3), nn.Dropout(0.3)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(self.dropout(torch.tanh(self.first(self.frozen(x)))))
