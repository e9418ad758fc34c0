"""Check that a closure gives the same result in every pass over one batch."""

from __future__ import annotations

import torch

from deltasam.core.closeness import close, rounding_of_repeats
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.core.vectors import HALF_DTYPES

CHANGES = (
    "the closure gives another result when it is run again with the same weights and random state: it keeps state in "
    "Python attributes, reads new data, or draws from its own generator; make it give the same result while "
    "deltasam.in_later_pass() is True"
)


def is_of_changes(reason: Exception) -> bool:
    """Whether an error reports a closure that changes: then no alternative with several passes helps."""
    return CHANGES in str(reason)


def refuse_another_loss(passes: Passes, loss: torch.Tensor) -> None:
    """Run the closure once more at unchanged weights and compare the loss.

    Args:
        passes: The passes of the step; the first one has run.
        loss: Mean loss [] of the first pass.

    Raises:
        RuntimeError: The loss differs.
    """
    with passes.at(guarded=True) as point:
        again = loss_of(point.output).detach()
    refuse_unlike(again, loss, passes)


def refuse_unlike(again: torch.Tensor, losses: torch.Tensor, passes: Passes) -> None:
    """Raise if the losses of a later pass at the same weights differ from the first pass's by more than rounding."""
    device = losses.device.type
    computed = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    dtypes = {losses.dtype, *(p.dtype for p in passes.params if p.dtype in HALF_DTYPES), *computed}
    if not close(again, losses, rounding_of_repeats(*dtypes, torch.float32)):
        raise RuntimeError(CHANGES)
