"""Base class of the methods with one perturbation per batch that weight examples by their gradient norms."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import one_of, positive
from deltasam.core.closure import example_losses_of, losses_of
from deltasam.core.passes import Passes
from deltasam.core.repeats import is_of_changes
from deltasam.core.warn import warn
from deltasam.method import Step
from deltasam.methods.bases.batch_perturbation import Ascent, BatchPerturbation
from deltasam.per_example.engine import Engine
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.recorder import NotCoveredError, Record

# Rounding error of a forward pass, in units of (machine epsilon * loss), measured on a 6-layer encoder.
ROUNDINGS = 8.0


class ReweightedPerturbation(BatchPerturbation):
    """Gradient at ``w + rho * a / |a|``, ``a = grad mean_i p_i L_i(w)``, with weights ``p_i`` from gradient norms.

    The norms of the per-example gradients are obtained in one of two ways:

    - ``norms``: exactly, from the per-example engine. Cost: two passes; a itself comes from the record of the first. A
      scalar loss is enough.
    - ``slopes``: from ``|L_i(w+d) - L_i(w)|`` for a random d, with the same dropout masks, up to a factor that all
      examples share. Works for any model with one loss per example. Cost: two passes and a forward.

    A subclass defines the weights, and may add other ways to estimate them from forwards.

    Args:
        model: The model to train.
        rho: Radius of the perturbation. 0 is plain training.
        weights: One of ``weightings``; ``auto``: norms where the engine covers the model, else slopes, with a warning.
        sigma: Magnitude of d, per weight.
        share: Scope of a perturbation. In each case the weights have mean 1 in every micro-batch.
        only: Parameters that move, as text; None: all. The norms are those of their gradients.
    """

    weightings: ClassVar[tuple[str, ...]] = ("auto", "norms", "slopes")
    reuses_outputs = False
    engine_weightings: ClassVar[frozenset[str]] = frozenset({"auto", "norms"})
    """The weightings that try the per-example engine first."""

    def __init__(
        self, model: nn.Module, *, rho: float, weights: str, sigma: float, share: str, only: str | None = None
    ) -> None:
        super().__init__(model, rho=rho, share=share, only=only)
        self.weights = one_of(type(self).__name__, "weights", weights, self.weightings)
        self.sigma = positive(type(self).__name__, "sigma", sigma)
        self._engine = Engine(model, only=self.moving)
        self._uncovered: frozenset[str] | None = None
        self._covered = False

    @abc.abstractmethod
    def weigh(self, norms: Tensor) -> Tensor:
        """Weights [n] of mean 1, from the norms of the examples' gradients [n], given up to a common factor."""

    def weigh_by_engine(self, passes: Passes, record: Record, gradients: ExampleGradients, norms: Tensor) -> Tensor:
        """Weights [n] where the engine covers the model: from exact norms, unless overridden.

        Args:
            passes: The passes of the step; the first one has run.
            record: The engine's record of the first pass.
            gradients: The per-example gradients; must not be changed.
            norms: The norms of these gradients [n].

        Raises:
            NotCoveredError: Another pass does not repeat the operations of the first.
        """
        return self.weigh(norms)

    def random_direction(self, passes: Passes) -> list[Tensor]:
        """The direction of d: standard normal, unless overridden."""
        return passes.noise()

    def estimate_weights(self, passes: Passes, losses: Tensor) -> Tensor:
        """Weights [n] from forwards without gradients: from slopes, unless overridden."""
        with passes.at(self.moving.restricted(passes, self.random_direction(passes)), self.sigma) as point:
            change = example_losses_of(point.output, type(self).__name__) - losses
        self._warn_if_rounding(change, losses, passes.params)
        return self.weigh(change.abs())

    def _use_exact_norms(self) -> bool:
        wanted = self.weights in self.engine_weightings
        return wanted and (self._uncovered is None or self._uncovered != self._engine.trainable_names())

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        with self._engine.eager(type(self).__name__) if self._use_exact_norms() else nullcontext():
            return super().fill_step(micro_batches)

    def ascent(self, passes: Passes) -> Ascent:
        if self._use_exact_norms():
            output, record = self._engine.first(passes)
            losses = losses_of(output)
            metrics, ascent = self._by_norms(passes, output, record)
        else:
            losses = example_losses_of(passes.first(), type(self).__name__)
            metrics, ascent = self._by_forwards(passes, losses)
        return Ascent(losses.detach().mean(), ascent, metrics)

    def _by_norms(
        self, passes: Passes, output: object, record: Record
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        losses = losses_of(output)
        try:
            gradients = self._engine.gradients(passes, record, losses, 1)
            norms = gradients.norms()
            weights = self.weigh_by_engine(passes, record, gradients, norms)
        except NotCoveredError as reason:
            # After the first step the reason concerns this process's rows: the others would go on with the engine.
            of_this_process = self._covered and not passes.alone
            if self.weights != "auto" or is_of_changes(reason) or of_this_process:
                message = f"{type(self).__name__}(weights={self.weights!r}): {reason}\nWays out: weights='slopes'"
                raise NotCoveredError(message, specs=[f"{self.name}:weights=slopes"]) from None
            self._uncovered = self._engine.trainable_names()
            warn(f"{type(self).__name__} estimates slopes by a forward pass: {reason}")
            with passes.at() as point:  # unwatched: watching may have changed what the model computes
                return self._by_forwards(passes, example_losses_of(point.output, type(self).__name__))
        self._covered = True
        if losses.ndim:
            gradients.scale(weights / len(losses))  # the gradients are those of single losses, a is that of their mean
        else:
            gradients.scale(weights)
        metrics = {"weights": weights.to(losses.dtype), "example_norms": norms}
        return metrics, _totals(passes, record, gradients)

    @property
    def per_example(self) -> bool:
        """Whether the weights may come from exact norms."""
        return self.weights in self.engine_weightings

    def state_dict(self) -> dict[str, Any]:
        """The trained parameters for which the engine did not cover the model, if any."""
        return {} if self._uncovered is None else {"uncovered": sorted(self._uncovered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue without trying the engine again.

        Raises:
            ValueError: The state was saved by a method that does not weight examples.
        """
        self.check_state(state, (), ("uncovered",))
        if state:
            self._uncovered = frozenset(state["uncovered"])

    def _by_forwards(self, passes: Passes, losses: Tensor) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        with torch.no_grad():
            weights = self.estimate_weights(passes, losses.detach())
        return {"weights": weights}, self.moving.grad(passes, (weights * losses).mean())

    def _rounding(self, losses: Tensor, params: list[nn.Parameter]) -> Tensor:
        """Bound [n] on the rounding error of a difference of each loss."""
        dtypes = {losses.dtype, *(p.dtype for p in params)}
        if torch.is_autocast_enabled(losses.device.type):
            dtypes.add(torch.get_autocast_dtype(losses.device.type))
        return ROUNDINGS * max(torch.finfo(d).eps for d in dtypes) * losses.abs()

    def _warn_if_rounding(self, change: Tensor, losses: Tensor, params: list[nn.Parameter]) -> None:
        if (change.abs() < self._rounding(losses, params)).float().mean() > 0.5:
            warn(
                f"{type(self).__name__}(sigma={self.sigma}): the loss changes by no more than rounding for most "
                f"examples, so the weights are noise; raise sigma, or compute in a wider floating-point type"
            )


def equal_unless_finite(weights: Tensor) -> Tensor:
    """The weights [n]; or all ones if some are not finite."""
    return torch.where(weights.isfinite().all(), weights, torch.ones_like(weights))


def _totals(passes: Passes, record: Record, gradients: ExampleGradients) -> list[Tensor | None]:
    """The sum over the examples, one tensor per parameter; None where one does not move."""
    of = dict(zip(record.parameters, gradients.totals(record.parameters.values()), strict=True))
    return [of.get(name) for name in passes.structure.trained]
