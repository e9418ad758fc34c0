"""What an optimizer trains must be in the method's model: else it is trained, but neither perturbed nor counted."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_SHOWN = 5


def refuse_other_parameters(
    optimizer: torch.optim.Optimizer, models: Iterable[nn.Module], named: Iterable[tuple[str, nn.Parameter]] = ()
) -> None:
    """Raise where an optimizer has parameters that no model holds.

    Args:
        optimizer: Whose parameters are trained.
        models: The method's model; or several, of which it is one.
        named: Parameters that may be among them, by name, for the error.

    Raises:
        ValueError: It has others.
    """
    held = {id(p) for model in models for p in model.parameters()}
    names = {id(p): name for name, p in named}
    others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in held]
    if others:
        shown = ", ".join(names.get(id(p), f"one of shape {list(p.shape)}") for p in others[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise ValueError(
            f"the optimizer trains parameters that the method's model does not hold ({shown}{more}): they would be "
            f"trained without being perturbed or counted in a norm; put them into the model (a module that holds the "
            f"model and its loss will do), freeze them, or give them no place in the optimizer"
        )
