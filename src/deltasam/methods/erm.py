"""Empirical risk minimization: plain training."""

from __future__ import annotations

from typing import ClassVar

from deltasam.method import Method, Step
from deltasam.outputs import loss_of
from deltasam.passes import Passes


class ERM(Method, name="erm"):
    """Plain training, the baseline: ``.grad += grad L(w)``.

    Exactly ``loss.backward()``. Cost: one pass.

    Args:
        model: The model to train.
    """

    neutral: ClassVar[dict[str, float]] = {}

    def _fill(self, passes: Passes) -> Step:
        return Step(passes.backward(loss_of(passes.only())))
