"""Preconditioned functional SAM: functional SAM along Adam's direction."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.methods.bases.preconditioned import Preconditioned
from deltasam.methods.functional_sam import FunctionalSAM


class PreconditionedFunctionalSAM(Preconditioned, FunctionalSAM, name="preconditioned_functional_sam"):
    """Functional SAM along Adam's direction: ``J(w + rho * d / |d|)^T dL/dF(w)``, ``d = g / (sqrt(v) + r)``.

    The gradient of ``functional_sam``, whose Jacobian is taken where ``preconditioned_sam`` moves the weights.

    Call ``method.follow(optimizer)`` once before training.

    Cost: two passes.

    Source: Singh et al., "Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM", ICML 2025 (arXiv
    2502.02407): the variant that improves on AdamW in pretraining, where SAM does not.

    When: language models, with Adam or AdamW.

    When not: as for the two that it is made of: a loss with terms on weights or hidden states, an optimizer without a
    second moment (both refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, share is unknown, there are no logits, or the loss does not depend
            on the weights through them alone.
        RuntimeError: It follows no optimizer, or one without a second moment.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self, model: nn.Module, *, rho: float = 0.05, share: str = "micro-batch", only: str | None = None
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
