"""Preconditioned SAM: the perturbation is measured as the optimizer measures its steps."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.methods.bases.preconditioned import Preconditioned


class PreconditionedSAM(Preconditioned, name="preconditioned_sam"):
    """SAM along Adam's direction: ``grad L(w + rho * d / |d|)``, ``d = g / (sqrt(v) + r)``, v Adam's second moment.

    ``g = grad L(w)``; v has seen it, ``beta2 * v + (1 - beta2) * g^2``; r is a hundredth of the root mean square of
    sqrt(v) over the weights that move. Plain SAM spends its radius on the few weights with the largest gradients; here
    every weight moves in proportion to how unusual its gradient is.

    Call ``method.follow(optimizer)`` once before training. In the first step, and in training that has just begun to
    train a weight, d is close to the gradient's sign.

    Cost: two passes.

    Source: Singh et al., "Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM", ICML 2025 (arXiv
    2502.02407), section 6. That v includes the present gradient, and what r is, are this library's choices.

    When: the optimizer is Adam or AdamW, and gradients of different layers differ by orders of magnitude: language
    models, embeddings.

    When not: the optimizer keeps no second moment (refused), or a quantized one (refused). rho compares with SAM's only
    roughly: the perturbation is spread over all weights.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, or share is unknown.
        RuntimeError: It follows no optimizer, or one without a second moment.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self, model: nn.Module, *, rho: float = 0.05, share: str = "micro-batch", only: str | None = None
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
