"""Random perturbation: the weights move along Gaussian noise, which needs no gradient."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.core.passes import Passes
from deltasam.core.vectors import Vector
from deltasam.methods.bases.known_perturbation import KnownPerturbation


class RandomSAM(KnownPerturbation, name="random_sam"):
    """Gradient at randomly moved weights: ``grad L(w + rho * z / |z|)``, z standard normal.

    Minimises the average loss around the weights, where SAM minimises the largest. A random direction hits a steep one
    rarely: the same effect needs a radius many times SAM's.

    Cost: one pass.

    Source: random weight perturbation (RWP); compared with SAM by Li et al., "Revisiting Random Weight Perturbation
    for Efficiently Improving Generalization", TMLR 2024 (arXiv 2404.00357). There the noise is scaled to each filter's
    norm; here it is isotropic and of length rho, so that its radius compares with that of the other methods.

    When: training must cost what plain training costs; as a control that shows what the direction of a perturbation
    contributes.

    When not: the model has BatchNorm, whose running statistics see the moved weights.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.5, only: str | None = None) -> None:
        super().__init__(model, rho=rho, only=only)

    def known_direction(self, passes: Passes) -> Vector:
        if any(p.is_complex() for p in passes.params):
            raise ValueError(
                f"{self.spec}: noise is real, and would move the real parts of complex parameters only; use sam"
            )
        return passes.noise()
