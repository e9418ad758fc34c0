"""What reweighting can do at most: the weights that bring a common perturbation nearest to one for each example."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.closure import example_losses_of, loss_of
from deltasam.core.passes import Passes
from deltasam.core.vectors import Vector
from deltasam.methods.bases.batch_perturbation import Ascent, BatchPerturbation

FLOOR = "floor"
"""What it is called in results."""

_OWNER = "the floor of fidelity"

_SEARCH_STEPS = 8
"""Of L-BFGS; more lower the error by less than what batches differ by."""

_LEAST = 1e-4
"""A weight of 0 has no logarithm: that of a search starts with this share of the largest at least."""

_LOOK = 0.1
"""How far to look for a derivative, in units of the radius."""


class BestWeights(BatchPerturbation):
    """Gradient at ``w + rho * a / |a|``, ``a = grad mean_i p_i L_i(w)``, with the weights that a search finds best.

    The weights ``p_i > 0`` are those for which the gradient there is nearest to a given one: nothing that reweights can
    come nearer, but for what the search misses. It minimises ``|grad L(w + e(p)) - x|^2`` by L-BFGS. Derivatives are
    differences of gradients and losses, so that any model can be measured; they only lead the search, and the error of
    what it finds is exact.

    Not for training: a step takes some seventy passes, and knows what it should come out at.

    Args:
        model: The model.
        rho: Radius of the perturbation.
    """

    def __init__(self, model: nn.Module, *, rho: float) -> None:
        super().__init__(model, rho=rho, share="micro-batch")
        self._exact: Vector = []
        self._start: Tensor | None = None

    @property
    def spec(self) -> str:
        """What it is called in results."""
        return f"{FLOOR}:rho={self.rho!r}"

    def aim_at(self, exact: Vector, start: Tensor | None) -> None:
        """Set where the next step is to go.

        Args:
            exact: The gradient to come near to, one tensor per trainable parameter.
            start: Weights of the examples to search from [n]; what is found is no worse. None: equal ones.
        """
        self._exact, self._start = exact, start

    def ascent(self, passes: Passes) -> Ascent:
        losses = example_losses_of(passes.first(), _OWNER).detach()
        equal = torch.ones_like(losses)
        starts = [equal] if self._start is None else [equal, self._start.to(losses)]
        best: tuple[float, Vector] = (math.inf, [])

        def distance(weights: Tensor) -> tuple[float, Tensor]:
            nonlocal best
            far, slope, ascent = self._distance(passes, weights)
            if far < best[0] or not best[1]:  # where nothing can be told the first ascent is as good as any
                best = far, ascent
            return far, slope

        start = min(starts, key=lambda weights: distance(weights / weights.sum())[0])
        place = start.clamp(min=_LEAST * start.max()).log().requires_grad_()

        def error() -> Tensor:
            weights = place.detach().softmax(0)
            far, slope = distance(weights)
            place.grad = weights * (slope - weights @ slope)
            return losses.new_tensor(far)

        if math.isfinite(best[0]):
            search = torch.optim.LBFGS([place], max_iter=_SEARCH_STEPS, line_search_fn="strong_wolfe")
            search.step(error)
        return Ascent(losses.mean(), list(best[1]))

    def _distance(self, passes: Passes, weights: Tensor) -> tuple[float, Tensor, Vector]:
        """The squared distance to the exact gradient, its derivative by the weights [n], and the ascent.

        Where it is 0, or nothing can be told, so is the derivative.
        """
        ascent, flat = _weighted_gradient(passes, weights), torch.zeros_like(weights)
        length = float(vectors.norm(ascent))
        if not 0 < length < math.inf:
            return math.inf, flat, ascent
        way = vectors.times(ascent, 1 / length)
        rest = vectors.plus(_gradient_at(passes, way, self.rho), self._exact, -1)
        far, step = float(vectors.norm(rest)), _LOOK * self.rho
        if not 0 < far < math.inf:
            return (0.0 if far == 0 else math.inf), flat, ascent
        ahead, behind = (
            _gradient_at(passes, vectors.plus(vectors.times(way, self.rho), rest, sign * step / far), 1.0)
            for sign in (1, -1)
        )
        bent = vectors.times(vectors.plus(ahead, behind, -1), far / (2 * step))
        across = vectors.plus(bent, way, -_dot(way, bent))
        size = float(vectors.norm(across))
        if not 0 < size < math.inf:
            return far**2, flat, ascent
        above, below = (_losses_at(passes, across, sign * step / size) for sign in (1, -1))
        along = (above - below) * (size / (2 * step))
        return far**2, (2 * self.rho / length * along).nan_to_num(0.0, 0.0, 0.0), ascent


def _weighted_gradient(passes: Passes, weights: Tensor) -> list[Tensor | None]:
    """Gradient of the weighted sum of the losses at the weights as they are."""
    with passes.at() as point:
        return passes.grad((weights * example_losses_of(point.output, _OWNER)).sum())


def _gradient_at(passes: Passes, vector: Vector, factor: float) -> list[Tensor | None]:
    with passes.at(vector, factor) as point:
        return passes.grad(loss_of(point.output))


def _losses_at(passes: Passes, vector: Vector, factor: float) -> Tensor:
    with torch.no_grad(), passes.at(vector, factor) as point:
        return example_losses_of(point.output, _OWNER)


def _dot(a: Vector, b: Vector) -> float:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return float(sum((x.double() * y.double()).sum() for x, y in pairs))
