"""Base class of the methods whose perturbation is known before the first pass: one pass, at moved weights."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative
from deltasam.core.closure import loss_of
from deltasam.core.only import Only
from deltasam.core.passes import Passes, radius_ratio
from deltasam.core.vectors import Vector
from deltasam.method import Method, Step


class KnownPerturbation(Method):
    """Gradient at ``w + rho * d / |d|`` for a direction d that needs no gradient of this batch.

    The loss is known at the moved weights only: that is what ``Step.loss`` is. Buffers (BatchNorm's statistics) see the
    moved weights too. Without a direction yet, the step is a plain one.

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        only: Parameters that move, as text; None: all.
    """

    def __init__(self, model: nn.Module, *, rho: float, only: str | None = None) -> None:
        super().__init__(model)
        self.rho = nonnegative(type(self).__name__, "rho", rho)
        self.only = only
        self.moving = Only(type(self).__name__, only)

    @property
    def loss_is_perturbed(self) -> bool:
        """Always."""
        return True

    towards: ClassVar[float] = 1.0
    """1: the weights move along the direction; -1: against it."""

    @abc.abstractmethod
    def known_direction(self, passes: Passes) -> Vector:
        """The direction d, one tensor per parameter, or None where it does not move."""

    def fill(self, passes: Passes) -> Step:
        direction: list[Tensor | None] = [None] * len(passes.params)
        if self.rho:
            direction = self.moving.restricted(passes, self.known_direction(passes))
        factor = self.towards * vectors.length_to(self.rho, vectors.length(direction))
        return fill_in_one_pass(passes, direction, factor, self.rho)


def fill_in_one_pass(
    passes: Passes, vector: Vector, factor: float, radius: float, *, params: Sequence[nn.Parameter] | None = None
) -> Step:
    """Fill ``.grad`` in a single pass, at the weights moved by ``factor * vector``.

    Args:
        passes: The passes of the micro-batch; none has run.
        vector: One tensor per parameter, or None where it does not move.
        factor: Scale of the vector.
        radius: The distance that is wanted, for the metrics.
        params: The parameters that the vector is for, which may be frozen; None: all that are trained.
    """
    with passes.first_at(vector, factor, params=params) as point:
        loss = passes.backward(loss_of(point.output))
        ratio = radius_ratio(point.radius(), radius)
    return Step(loss, {"perturbed_loss": loss, "radius_ratio": ratio})
