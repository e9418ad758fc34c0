"""Check that the method's model holds all parameters an optimizer trains: others would be trained but not perturbed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_SHOWN = 5


def refuse_other_parameters(
    optimizer: torch.optim.Optimizer, models: Iterable[nn.Module], named: Iterable[tuple[str, nn.Parameter]] = ()
) -> None:
    """Raise if an optimizer has parameters that no model holds.

    Args:
        optimizer: The optimizer.
        models: The method's model; or several models, of which it is one.
        named: Further parameters by name, to name them in the error message.

    Raises:
        ValueError: The optimizer has parameters that no model holds.
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
            f"model and its loss will do), freeze them, or remove them from the optimizer"
        )
