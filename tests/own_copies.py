"""Per-instance SAM by a deep copy of the model for every example: nothing of the library is in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Losses = Callable[[Any], Tensor]
"""Losses of a batch [n] of a model."""


def gradient_of_copies(model: nn.Module, losses: Losses, rho: float) -> dict[str, Tensor]:
    """``mean_i grad L_i(w + rho g_i / |g_i|)``, one example after the other, all from the present random state."""
    state, total = torch.get_rng_state(), {}
    for i in range(len(losses(copy.deepcopy(model)))):
        own = copy.deepcopy(model)
        ascent = _gradient(own, losses, i, state)
        norm = torch.stack([g.square().sum() for g in ascent.values()]).sum().sqrt()
        own = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in own.named_parameters():
                p.add_(ascent[name] * (rho / norm if norm > 0 else 0.0))
        for name, g in _gradient(own, losses, i, state).items():
            total[name] = total.get(name, 0) + g
    torch.set_rng_state(state)
    n = len(losses(copy.deepcopy(model)))
    torch.set_rng_state(state)
    return {name: g / n for name, g in total.items()}


def _gradient(model: nn.Module, losses: Losses, i: int, state: Tensor) -> dict[str, Tensor]:
    torch.set_rng_state(state)
    model.zero_grad()
    losses(model)[i].backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def error(model: nn.Module, wanted: dict[str, Tensor]) -> float:
    """Of ``.grad``, relative to the norm of what is wanted; a gradient that is None counts as 0."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    difference = torch.cat([(found[n] - g).flatten() for n, g in wanted.items()])
    return float(difference.norm() / torch.cat([g.flatten() for g in wanted.values()]).norm())
