"""AE-SAM: a second pass only where the gradient is large for what it has been lately."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn

from deltasam.core import vectors
from deltasam.core.checks import finite, fraction, nonnegative
from deltasam.core.closure import loss_of
from deltasam.core.only import Only
from deltasam.core.passes import Passes
from deltasam.method import Method, Step
from deltasam.methods.bases.gradient_state import refuse_sharded


class AESAM(Method, name="ae_sam"):
    """SAM where the gradient is large, else plain training: ``g_s if |g|^2 >= mu + threshold * sigma else g``.

    ``g = grad L(w)``, ``g_s = grad L(w + rho * g / |g|)``. mu and sigma are moving estimates of the mean and the
    standard deviation of |g|^2 that have seen this gradient: ``mu <- momentum * mu + (1 - momentum) * |g|^2``, and
    sigma^2 likewise of ``(|g|^2 - mu)^2``. They start with the first gradient, whose step is SAM's. A large gradient
    stands for a sharp place.

    Every call of ``backward`` decides for itself, and so does every micro-batch; several processes take the mean norm
    and decide together. A gradient that is infinite or NaN is left out. The estimates do not depend on the scale of a
    loss scaler in the runtime.

    Cost: one pass, and another in a share of the steps that the threshold sets.

    Source: Jiang et al., "An Adaptive Policy to Employ Sharpness-Aware Minimization", ICLR 2023 (arXiv 2304.14647),
    equations 5 to 7. There the threshold goes linearly from 1 to -1 over training; here it is constant.

    When: two passes are too expensive, and it should not be the clock that says which steps have them (``@every=2``).

    When not: the weights are sharded (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        threshold: How many standard deviations above its mean the squared norm must be for a second pass; below 0 most
            steps have one.
        momentum: Decay factor of both estimates at each call.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, momentum is not in [0, 1), one of the three is NaN or infinite, or the weights are
            sharded.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.02,
        threshold: float = 0.0,
        momentum: float = 0.9,
        only: str | None = None,
    ) -> None:
        super().__init__(model)
        self.rho = nonnegative("AESAM", "rho", rho)
        self.threshold = finite("AESAM", "threshold", threshold)
        self.momentum = fraction("AESAM", "momentum", momentum)
        self.only = only
        self.moving = Only("AESAM", only)
        self._mean: float | None = None
        self._variance = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The estimates of mean and variance, if there was a gradient yet."""
        return {} if self._mean is None else {"mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with saved estimates.

        Raises:
            ValueError: The state was saved by another method.
        """
        self.check_state(state, (), ("mean", "variance"))
        self._mean, self._variance = state.get("mean"), state.get("variance", 0.0)

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        refuse_sharded(self, "the first gradient")
        return super().fill_step(micro_batches)

    def fill(self, passes: Passes) -> Step:
        loss = loss_of(passes.first())
        if self.rho == 0:
            return Step(passes.backward(loss))
        plain = passes.grad(loss)
        loss, length = loss.detach(), vectors.length(plain)
        if self._is_large((passes.mean_of_number(length.value) / passes.loss_scale()) ** 2):
            ascent = self.moving.restricted(passes, plain)
            plain.clear()
            return Step(loss, passes.descend(ascent, self.rho, length=length if self.only is None else None))
        passes.accumulate(plain, loss)
        return Step(loss, {"ascent_norm": length.norm})

    def _is_large(self, square: float) -> bool:
        """Whether the squared norm of a gradient is to be followed by a second pass; updates the estimates."""
        if not math.isfinite(square):
            return True  # nothing moves along it, as for SAM
        if self._mean is None:
            self._mean = square
            return True
        self._mean = self.momentum * self._mean + (1 - self.momentum) * square
        away = (square - self._mean) ** 2
        self._variance = self.momentum * self._variance + (1 - self.momentum) * away
        return square >= self._mean + self.threshold * math.sqrt(self._variance)
