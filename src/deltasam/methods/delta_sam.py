"""delta-SAM: one perturbation per batch, reweighted towards what per-instance perturbations would have done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.checks import one_of, positive
from deltasam.method import Step
from deltasam.outputs import example_losses_of, losses_of
from deltasam.passes import Passes
from deltasam.per_example.engine import Engine
from deltasam.per_example.record import NotCoveredError, Record
from deltasam.shared_ascent import Ascent, SharedAscent
from deltasam.warn import warn

# A slope estimated from one Gaussian may be near 0 by chance, and is divided by: it counts as at least this
# share of the batch's mean slope. No example may weigh more than LARGEST times the mean.
SMALLEST_SLOPE = 0.1
LARGEST_WEIGHT = 4.0
# Rounding errors of a forward pass, in units of (machine epsilon * loss), as measured on a 6-layer encoder.
ROUNDINGS = 8.0


class DeltaSAM(SharedAscent, name="delta_sam"):
    """SAM along the gradient of a reweighted loss: ``grad L(w + rho * a / |a|)``, ``a = grad mean_i p_i L_i(w)``.

    The weights ``p_i ~ h_i^2 / |g_i|`` make the common perturbation the best stand-in for one perturbation per
    example: |g_i| is the norm of example i's gradient, h_i how much its gradient changes under a random
    perturbation d of the weights, ``d ~ N(0, sigma^2)``, with the same dropout masks. They are had in one of three
    ways (``docs/methods.md`` has what each costs and how close it comes):

    - ``norms``: exact norms from the per-example engine, ``h_i ~ |g_i|^(1/4)``, so ``p_i ~ |g_i|^(-1/2)``. Cost:
      two passes; a itself comes from the record of the first. A scalar loss is enough.
    - ``slopes``: |g_i| by ``|L_i(w+d) - L_i(w)|``, otherwise the same. Works for any model with one loss per
      example. Cost: two passes and a forward.
    - ``curvature``: h_i by ``|L_i(w+d) + L_i(w-d) - 2 L_i(w)|``, |g_i| by ``|L_i(w+d) - L_i(w-d)|``. Likewise.
      Cost: two passes and two forwards.

    Source: the idea, reweighting by derived factors that random Gaussian perturbations estimate, is from Zhou
    et al., "Sharpness-Aware Minimization with Dynamic Reweighting", Findings of EMNLP 2022 (arXiv 2112.08772).
    No code was published; the formula of the weights and all three estimates are derived here.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        weights: ``norms``, ``slopes``, ``curvature``; or ``auto``: norms where the engine covers the model, else
            slopes, with a warning that says why.
        sigma: Standard deviation of the Gaussian, per weight. Too small, and the differences are rounding.
        share: Who shares a perturbation: ``micro-batch``, ``rank`` or ``global``. The weights have mean 1 in every
            micro-batch all the same.

    Raises:
        ValueError: rho is negative, sigma is not above 0, or one of them is NaN or infinite; no such weights.
        NotCoveredError: ``norms`` was asked for and the engine does not cover the model.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.02,
        weights: str = "auto",
        sigma: float = 1e-3,
        share: str = "micro-batch",
    ) -> None:
        super().__init__(model, rho=rho, share=share)
        self.weights = one_of("DeltaSAM", "weights", weights, ("auto", "norms", "slopes", "curvature"))
        self.sigma = positive("DeltaSAM", "sigma", sigma)
        self._engine = Engine(model)
        self._uncovered: frozenset[str] | None = None

    def _tries_norms(self) -> bool:
        return self.weights in ("auto", "norms") and self._uncovered != self._engine.trained()

    def _fill_from(self, micro_batches: Iterator[Passes]) -> Step:
        with self._engine.as_written("DeltaSAM") if self._tries_norms() else nullcontext():
            return super()._fill_from(micro_batches)

    def _ascent(self, passes: Passes) -> Ascent:
        if self._tries_norms():
            output, record = self._engine.first(passes)
            losses = losses_of(output)
            weights, ascent = self._by_norms(passes, output, record)
        else:
            losses = example_losses_of(passes.first(), "DeltaSAM")
            weights, ascent = self._by_forwards(passes, losses)
        return Ascent(losses.detach().mean(), ascent, {"weights": weights})

    def _by_norms(self, passes: Passes, output: Any, record: Record) -> tuple[Tensor, list[Tensor | None]]:
        losses = losses_of(output)
        try:
            gradients = self._engine.gradients(passes, record, losses, 1)
        except NotCoveredError as reason:
            if self.weights == "norms":
                message = f"DeltaSAM(weights='norms'): {reason}\nWays out: weights='slopes'"
                raise NotCoveredError(message, specs=[f"{self.name}:weights=slopes"]) from None
            self._uncovered = self._engine.trained()
            warn(f"DeltaSAM estimates slopes by a forward pass: {reason}")
            with record:  # checkpointed layers run again as they ran
                return self._by_forwards(passes, example_losses_of(output, "DeltaSAM"))
        norms = gradients.norms()
        weights = reweight(_growing_with(norms), norms)
        if losses.ndim:
            gradients.scale(weights / len(losses))  # of the mean
        else:
            gradients.scale(weights)
        return weights.to(losses.dtype), list(gradients.totals(record.parameters.values()))

    @property
    def per_example(self) -> bool:
        """Where the weights come from exact norms."""
        return self.weights in ("auto", "norms")

    def state_dict(self) -> dict[str, Any]:
        """Whether, and for which trained parameters, the norms were found not to be had."""
        return {} if self._uncovered is None else {"uncovered": sorted(self._uncovered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on without trying again."""
        if "uncovered" in state:
            self._uncovered = frozenset(state["uncovered"])

    def _by_forwards(self, passes: Passes, losses: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        estimate = self._curvature if self.weights == "curvature" else self._slopes
        weights = estimate(passes, losses.detach())
        return weights, passes.grad((weights * losses).mean())

    @torch.no_grad()
    def _slopes(self, passes: Passes, losses: Tensor) -> Tensor:
        noise = passes.noise()
        with passes.at(noise, self.sigma) as point:
            change = example_losses_of(point.output, "DeltaSAM") - losses
        self._warn_if_rounding(change, losses, passes.params)
        return reweight(_growing_with(change.abs()), change.abs())

    @torch.no_grad()
    def _curvature(self, passes: Passes, losses: Tensor) -> Tensor:
        noise = passes.noise()
        with passes.at(noise, self.sigma) as point:
            above = example_losses_of(point.output, "DeltaSAM")
        with passes.at(noise, -self.sigma) as point:
            below = example_losses_of(point.output, "DeltaSAM")
        # |d| is the same for every example, so it cancels when the weights are brought to mean 1.
        second, first = (above - losses) + (below - losses), above - below
        self._warn_if_rounding(second, losses, passes.params)
        return reweight(second.abs(), first.abs())

    def _warn_if_rounding(self, change: Tensor, losses: Tensor, params: list[nn.Parameter]) -> None:
        dtypes = {losses.dtype, *(p.dtype for p in params)}
        if torch.is_autocast_enabled(losses.device.type):
            dtypes.add(torch.get_autocast_dtype(losses.device.type))
        epsilon = max(torch.finfo(d).eps for d in dtypes)
        if (change.abs() < ROUNDINGS * epsilon * losses.abs()).float().mean() > 0.5:
            warn(
                f"DeltaSAM(sigma={self.sigma}): the loss changes by no more than rounding for most examples, so "
                f"the weights are noise; raise sigma, or compute in a wider floating-point type"
            )


def _growing_with(slope: Tensor) -> Tensor:
    """The change h_i of each gradient, guessed from its norm: it grows with the fourth root."""
    return (slope / slope.mean()).pow(0.25)


def reweight(curvature: Tensor, slope: Tensor) -> Tensor:
    """Weights ``curvature^2 / slope`` [n], floored, clipped, mean 1; uniform where they cannot be told.

    Args:
        curvature: Size of the change of each gradient [n], in any unit that is common to the batch.
        slope: Norm of each gradient [n], in any unit that is common to the batch.
    """
    raw = curvature.square() / slope.clamp(min=SMALLEST_SLOPE * slope.mean())
    clipped = (raw / raw.mean()).clamp(max=LARGEST_WEIGHT)
    weights = clipped / clipped.mean()
    return torch.where(weights.isfinite().all(), weights, torch.ones_like(weights))
