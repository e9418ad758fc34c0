"""A model of a few parts, put together by a function: that is what a test is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

D, C = 8, 3


class Model(nn.Module):
    """An encoder, a head and a second head, put together by a function."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter | None) -> None:
        super().__init__()
        self.enc, self.head, self.aux = nn.Linear(D, D), nn.Linear(D, C), nn.Linear(D, C)
        self._function = forward
        self.state: Tensor | None = None
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self._function(self, *args)


def hidden(m: Any, x: Tensor) -> Tensor:
    return torch.tanh(m.enc(x))
