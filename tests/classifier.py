"""The losses of the small classifier that the fixtures ``model`` and ``batch`` give."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")
