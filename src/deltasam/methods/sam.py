"""Sharpness-aware minimization with one perturbation per batch."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.methods.bases.batch_perturbation import BatchPerturbation


class SAM(BatchPerturbation, name="sam"):
    """Gradient at the adversarial weights of the batch: ``grad L(w + rho * g / |g|)``, ``g = grad L(w)``.

    Minimises the largest loss within distance rho of the weights, to first order, with the perturbation treated as a
    constant.

    Cost: two passes.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021
    (arXiv 2010.01412), equation 2 and algorithm 1.

    When: always the first to try, on any model and any loss. A scalar loss is enough, and most publications on
    sharpness-aware training are about this method, so its radius is the easiest to guess.

    When not: training is so short that the data is not fitted when it ends: a perturbation slows learning down. With
    sharded weights use it with ``share=global`` only.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        share: Scope of a perturbation: the examples of a ``micro-batch``, of a ``rank`` (all micro-batches of a call
            on one process), or ``global`` (all of them on all processes).
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, or share is none of the three.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self, model: nn.Module, *, rho: float = 0.02, share: str = "micro-batch", only: str | None = None
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
