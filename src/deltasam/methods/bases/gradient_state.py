"""What methods remember of past gradients, by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deltasam.core import vectors
from deltasam.core.passes import Passes
from deltasam.core.sharding import sharded_modules
from deltasam.core.vectors import Vector
from deltasam.method import Method


def check_vectors(method: Method, saved: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """A saved vector, if it is one of the method's model.

    Args:
        method: The method that loads it.
        saved: One tensor for each parameter, by name.
        what: The kind of thing that it is, for the error message: "an average".

    Raises:
        ValueError: The model has no parameter of a name and shape.
    """
    shapes = {name: p.shape for name, p in method.model.named_parameters()}
    for name, value in saved.items():
        if shapes.get(name) != value.shape:
            raise ValueError(
                f"{method.name} was given {what} of {name} {list(value.shape)}, which the model does not have, or has "
                f"in another shape; load a state that was saved for the same model"
            )
    return dict(saved)


def refuse_sharded(method: Method, what: str) -> None:
    """Refuse FSDP for a method that keeps something for each weight.

    Args:
        method: The method.
        what: What it keeps: "the moving average".

    Raises:
        ValueError: The model's weights are sharded.
    """
    if sharded_modules(method.model.modules()):
        raise ValueError(
            f"{method.spec}: FSDP cuts the weights up between the processes, and {what} with them, so no process could "
            f"save it; use DDP, or sam:share=global"
        )


def values_of(passes: Passes, known: Mapping[str, Tensor]) -> list[Tensor | None]:
    """A vector kept by parameter name, as one tensor per parameter, on its device; None where there is none."""
    return [v if (v := known.get(n)) is None else v.to(p) for n, p in passes.structure.trained.items()]


@torch.no_grad()
def averaged(passes: Passes, average: dict[str, Tensor], gradient: Vector, momentum: float) -> dict[str, Tensor]:
    """An exponential moving average of gradients, ``momentum * m + (1 - momentum) * g``, by parameter name.

    It starts with a parameter's first gradient, does not depend on the loss scale, and leaves out gradients that are
    infinite or NaN: one overflowing step of a loss scaler would otherwise stay in it for good.

    Args:
        passes: The passes that the gradient is from.
        average: The average so far; it is not changed, since saved states hold it.
        gradient: The gradient, one tensor per parameter.
        momentum: Decay factor of the average.
    """
    if not math.isfinite(vectors.length(gradient).value):
        return average
    scale = passes.loss_scale()

    def moved(m: Tensor | None, g: Tensor | None) -> Tensor | None:
        if m is None:
            return None if g is None else g / scale
        kept = momentum * m  # a missing gradient counts as 0 once there is an average
        return kept if g is None else kept.add_(g, alpha=(1 - momentum) / scale)

    after = [moved(m, g) for m, g in zip(values_of(passes, average), gradient, strict=True)]
    return {n: m for n, m in zip(passes.structure.trained, after, strict=True) if m is not None}
