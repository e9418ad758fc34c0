"""Losses with a Hessian that is known: ``L_i(w) = (w - c_i)^T A (w - c_i) / 2``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

EIGENVALUES = (5.0, 3.0, 1.0, 0.5, 0.0, -0.5)
EXAMPLES = 12


class Quadratic(nn.Module):
    """The weights are w; it is called with the rows c_i."""

    def __init__(self, eigenvalues: Sequence[float] = EIGENVALUES) -> None:
        super().__init__()
        size = len(eigenvalues)
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        self.register_buffer("matrix", turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T)
        self.register_buffer("centres", torch.randn(EXAMPLES, size, generator=generator, dtype=torch.float64))
        self.w = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))

    def forward(self, centres: Tensor) -> Tensor:
        away = self.w - centres
        return (away @ self.matrix * away).sum(1) / 2

    def closures(self, sizes: Sequence[int] = (EXAMPLES,)) -> list[Callable[[], Tensor]]:
        """The examples in batches of these sizes."""
        return [lambda rows=rows: self(rows) for rows in self.centres.split(list(sizes))]

    def gradients(self) -> Tensor:
        """Of every example's loss [n, D]."""
        return (self.w.detach() - self.centres) @ self.matrix

    def rise(self, step: Tensor, gradient: Tensor) -> float:
        """``g^T d + d^T A d / 2``: what a step d adds to a loss of this gradient."""
        return float(gradient @ step + step @ self.matrix @ step / 2)
