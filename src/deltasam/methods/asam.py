"""Adaptive SAM: the radius is measured relative to the magnitude of each weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import positive
from deltasam.core.passes import Passes
from deltasam.core.torch_internals import foreach
from deltasam.methods.bases.batch_perturbation import BatchPerturbation, Direction


class ASAM(BatchPerturbation, name="asam"):
    """SAM in units of the weights: ``grad L(w + rho * T^2 g / |T g|)``, ``T = |w| + eta``, ``g = grad L(w)``.

    Designed to be invariant under a rescaling of layers that leaves the network's function unchanged; eta and the
    biases break the invariance slightly, or strongly where weights are tiny. As in the authors' code, T is 1 for
    parameters whose name does not contain "weight" (biases). ``radius_ratio`` is measured in units of T.

    Cost: two passes.

    Source: Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
    Neural Networks", ICML 2021 (arXiv 2102.11600), equation 10 and algorithm 1.

    When: the weights of different layers differ widely in magnitude, so that one radius is too large for some and
    negligible for others; or one radius should work for models of different scale.

    When not: a comparison at equal rho is wanted: its rho is in other units. In adapters (LoRA) initialised to zero, T
    is eta alone, and they hardly move in the first steps.

    Args:
        model: The model to train.
        rho: Radius of the perturbation in units of T; 0 is plain training. 0.5 is the authors' default, for training
            from scratch. The Euclidean distance it corresponds to depends on the model: in a fine-tuned encoder it is
            about 0.5 too (biases and norms have large T), far beyond SAM's default: search smaller values there.
        eta: Constant added to the magnitude of every weight, so that a zero weight can move.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, eta is not above 0, one of them is NaN or infinite, or share is unknown.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        share: str = "micro-batch",
        only: str | None = None,
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
        self.eta = positive("ASAM", "eta", eta)

    def direction(self, passes: Passes, ascent: list[Tensor | None]) -> Direction:
        units = self._units(passes.structure.trained)
        # Autograd may return one tensor as the gradient of two parameters: only new tensors are changed in place.
        known = [(i, g, units[i]) for i, g in enumerate(ascent) if g is not None]
        which, gradients, its = (list(column) for column in zip(*known, strict=True))
        scaled = foreach.mul(gradients, its)
        length = vectors.length(scaled)  # |T g|, the norm in the denominator, before the second factor T
        foreach.mul_(scaled, its)
        direction: list[Tensor | None] = [None] * len(ascent)
        for i, step in zip(which, scaled, strict=True):
            direction[i] = step
        return Direction(direction, length, units)

    @torch.no_grad()
    def _units(self, params: dict[str, nn.Parameter]) -> list[Tensor]:
        units = {name: p.new_ones(()) for name, p in params.items() if "weight" not in name}
        weights = {name: p for name, p in params.items() if "weight" in name}
        if weights:
            sizes = foreach.abs_of(list(weights.values()))
            foreach.add_(sizes, self.eta)
            units.update(zip(weights, sizes, strict=True))
        return [units[name] for name in params]
