"""What a model is worth after training: rounded, pruned and with noise."""

from __future__ import annotations

from torch import nn

from deltasam.diagnostics.after.change import AfterChange
from deltasam.diagnostics.after.noise import after_noise
from deltasam.diagnostics.after.pruning import after_pruning
from deltasam.diagnostics.after.rounding import after_rounding
from deltasam.diagnostics.after.weights import Evaluate


def after_training(model: nn.Module, evaluate: Evaluate, *, seed: int = 0) -> tuple[AfterChange, ...]:
    """``after_rounding``, ``after_pruning`` and ``after_noise`` with their defaults, in this order.

    Args:
        model: The model.
        evaluate: Runs it on some data and gives its metrics; called 17 times.
        seed: Of the noise.

    Raises:
        ValueError: The model has no weight matrix, or ``evaluate`` gives no metric.
    """
    return (
        after_rounding(model, evaluate),
        after_pruning(model, evaluate),
        after_noise(model, evaluate, seed=seed),
    )
