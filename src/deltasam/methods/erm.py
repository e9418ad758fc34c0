"""Empirical risk minimization: plain training."""

from __future__ import annotations

from typing import ClassVar

from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Method, Step


class ERM(Method, name="erm"):
    """Plain training, the baseline: ``.grad += grad L(w)``.

    Exactly ``loss.backward()``, so that a comparison needs no second training loop.

    Cost: one pass.

    Source: the name is Vapnik's, "Principles of Risk Minimization for Learning Theory", NIPS 1991.

    When: as the baseline of every comparison; and wherever no other method beat it on your data by more than noise.

    When not: never a wrong choice to start with.

    Args:
        model: The model to train.
    """

    neutral: ClassVar[dict[str, float]] = {}

    def fill(self, passes: Passes) -> Step:
        return Step(passes.backward(loss_of(passes.plain_forward())))
