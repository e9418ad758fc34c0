"""Per-instance functional SAM: every example's Jacobian is taken at its own perturbation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from deltasam.core.passes import Passes
from deltasam.method import Step
from deltasam.methods.bases.outputs import slope_of, with_slope
from deltasam.methods.per_instance_sam import PerInstanceSAM


class PerInstanceFunctionalSAM(PerInstanceSAM, name="per_instance_functional_sam"):
    """Functional SAM with one perturbation per example: ``mean_i J_i(w + rho * g_i / |g_i|)^T dL_i/dF_i(w)``.

    F_i are the outputs (logits) of example i, J_i their Jacobian, ``g_i = grad L_i(w)``. Of each example, the
    perturbation changes the Jacobian and not the gradient of the loss in the outputs. Exact, in two passes, as
    ``per_instance_sam`` is, with the same checks; the outputs are found and checked as for ``functional_sam``.

    Cost: two passes, the first without gradients of the weights; a checked step about four.

    Source: the method per batch is from Singh et al., ICML 2025 (arXiv 2502.02407); Baek et al., ICLR 2024 (arXiv
    2405.03676), study it per example (1-SAM, J-SAM) on toy models. The two batched passes are this library's own.

    When: labels are noisy, and it should be known whether the Jacobian or the outputs' statistics is what helps.

    When not: as for ``per_instance_sam`` (BatchNorm in training mode, recurrent layers: refused), and a loss with terms
    on weights or hidden states (refused).

    Args:
        model: The model to train.
        rho: Radius of each perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        m: Number of consecutive examples that share a perturbation; divides the batch. The whole batch is functional
            SAM.
        unsupported: What to do where two passes cannot be exact: ``error``, ``loop``, or ``skip``, as for
            ``per_instance_sam``.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, m is below 1, m does not divide the batch, unsupported is none of
            the three, there are no logits, or the loss does not depend on the weights through them alone.
        NotCoveredError: Two passes cannot be exact, and unsupported is ``error``. Names the parameters.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}
    _slope: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.005,
        m: int = 1,
        unsupported: str = "error",
        only: str | None = None,
    ) -> None:
        super().__init__(model, rho=rho, m=m, unsupported=unsupported, only=only)

    @property
    def compares_predictions(self) -> bool:
        """Always: it needs the logits."""
        return True

    def fill(self, passes: Passes) -> Step:
        passes.watch_model()
        step = super().fill(passes)
        self._slope = None
        return step

    def look(self, passes: Passes, output: Any, loss: Tensor) -> None:
        self._slope = slope_of(passes, output, loss, type(self).__name__)

    def descent_loss(self, passes: Passes, output: Any, loss: Tensor) -> Tensor:
        if self._slope is None:
            raise RuntimeError("a perturbed pass came before the one at the weights")
        return with_slope(passes, output, loss, self._slope, type(self).__name__)
