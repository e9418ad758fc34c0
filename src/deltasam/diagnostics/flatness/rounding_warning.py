"""A warning where a rise of the loss could be nothing but rounding."""

from __future__ import annotations

import warnings

from deltasam.diagnostics.closeness import rounding


def warn_if_rounding(owner: str, argument: str, value: float, rise: float, loss: float, epsilon: float) -> None:
    """Warn where the rounding of the loss could make a rise of this size.

    Args:
        owner: The measure.
        argument: What makes the rise larger.
        value: What it is.
        rise: Of the mean loss.
        loss: At the weights as they are.
        epsilon: Relative rounding error of the weights.
    """
    if abs(rise) <= rounding(loss, epsilon):
        warnings.warn(
            f"{owner}({argument}={value:g}): the loss of {loss:.3g} rises by {rise:.2g}, which rounding could make; "
            f"raise {argument}, or compute in a wider floating-point type",
            RuntimeWarning,
            stacklevel=3,
        )
