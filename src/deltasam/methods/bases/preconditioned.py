"""Ascent preconditioned by the optimizer's second moment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltasam.core import vectors
from deltasam.core.passes import Passes
from deltasam.methods.bases.batch_perturbation import BatchPerturbation, Direction
from deltasam.methods.bases.optimizer_state import ReadsOptimizer

DAMPING = 1e-2
"""What is added to the root of the second moment, relative to its root mean square over all weights."""


class Preconditioned(ReadsOptimizer, BatchPerturbation):
    """The ascent is divided by the root of the optimizer's second moment, ``a / (sqrt(v) + damping)``.

    v has seen the ascent, as in Adam's own step: ``beta2 * v + (1 - beta2) * a^2``. Without that, a weight that has had
    no gradient so far (the embedding of a rare word) would take the whole radius. The damping has the scale of the root
    itself, so that any scale of the loss cancels; without it, a gradient that is nothing but rounding (that of an
    attention's key bias, which changes no output) would count as much as any other.
    """

    optimizer_keys = ("exp_avg_sq",)

    @torch.no_grad()
    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        groups, scale, seconds = self.groups(), passes.loss_scale(), self.optimizer_state(passes)
        if any(
            a is not None and (a.is_complex() or id(p) not in groups)
            for a, p in zip(ascent, passes.params, strict=True)
        ):
            raise ValueError(
                f"{self.spec} needs the second moment of every parameter, and one is complex or trained by another "
                f"optimizer; use sam"
            )
        decays = [groups.get(id(p), {}).get("betas", (0.9, 0.999))[1] for p in passes.params]
        roots = [
            None if a is None else _root(a, v, decay, scale)
            for a, v, decay in zip(ascent, seconds, decays, strict=True)
        ]
        moving = self.moving.names(passes.structure)
        count = sum(p.numel() for name, p in passes.structure.trained.items() if name in moving)
        damping = DAMPING * vectors.length(roots).value / math.sqrt(count)
        if damping == 0:
            return Direction(ascent)
        return Direction(
            [None if a is None or r is None else a / r.add_(damping) for a, r in zip(ascent, roots, strict=True)]
        )


def _root(ascent: Tensor, second: Tensor | None, decay: float, scale: float) -> Tensor:
    """The root of the second moment after one more gradient, which is scaled."""
    now = vectors.wide(ascent).abs().mul_(math.sqrt(1 - decay) / scale)
    if second is None:
        return now
    return torch.hypot(now, second.to(now.dtype).sqrt().mul_(math.sqrt(decay)))  # squares may overflow
