"""Functional SAM: the perturbation changes the Jacobian of the outputs, and not the gradient of the loss in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.core.vectors import Length, Vector
from deltasam.method import Step
from deltasam.methods.bases.batch_perturbation import Ascent, BatchPerturbation
from deltasam.methods.bases.outputs import as_written, slope_of, with_slope


class FunctionalSAM(BatchPerturbation, name="functional_sam"):
    """SAM's Jacobian with the plain loss's gradient in the outputs: ``J(w + rho * g / |g|)^T dL/dF(w)``.

    F are the outputs (logits) that the loss is computed from, J is their Jacobian, ``g = grad L(w)``. SAM's own
    gradient is ``J(w + e)^T dL/dF(w + e)``: it flattens the function and changes the outputs' statistics (how certain
    they are). Functional SAM leaves the second out.

    The outputs are found as for the methods that compare predictions: the closure's ``logits``, else the model's. The
    graph of the loss is checked in every step: a loss that also depends on the weights in another way is an error.

    Cost: two passes.

    Source: Singh et al., "Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM", ICML 2025 (arXiv
    2502.02407), section 5; as J-SAM in Baek et al., "Why is SAM Robust to Label Noise?", ICLR 2024 (arXiv 2405.03676).

    When: language modelling, where SAM lowers the outputs' certainty more than it flattens; labels are noisy.

    When not: the loss has terms on weights or hidden states (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        share: Scope of a perturbation: ``micro-batch``, ``rank`` or ``global``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, share is unknown, there are no logits, or the loss does not depend
            on the weights through them alone.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self, model: nn.Module, *, rho: float = 0.02, share: str = "micro-batch", only: str | None = None
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)

    @property
    def compares_predictions(self) -> bool:
        """Always: it needs the logits."""
        return True

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        with as_written(self):
            return super().fill_step(micro_batches)

    def ascent(self, passes: Passes) -> Ascent:
        passes.watch_model()
        output = passes.first()
        loss = loss_of(output)
        slope = slope_of(passes, output, loss, type(self).__name__)
        return Ascent(loss.detach(), self.moving.grad(passes, loss), slope=slope)

    def descend(
        self, passes: Passes, ascent: Ascent, vector: list[Tensor | None], length: Length, scales: Vector | None
    ) -> dict[str, Tensor]:
        slope = cast("Tensor", ascent.slope)  # which this method's first pass has found

        def loss(output: Any) -> Tensor:
            return with_slope(passes, output, loss_of(output), slope, type(self).__name__)

        return passes.descend(vector, self.rho, length=length, scales=scales, loss=loss)
