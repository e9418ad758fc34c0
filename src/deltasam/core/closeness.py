"""Tolerances for comparing two results of one computation: equality up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from deltasam.core.vectors import HALF_DTYPES


def rounding_of(*dtypes: torch.dtype) -> float:
    """The largest relative error that rounding may cause in a forward and backward through a whole model.

    Args:
        *dtypes: The dtypes of the computation; the coarsest counts.
    """
    if any(d in HALF_DTYPES for d in dtypes):
        return 0.1
    return 1e-3 if torch.float32 in dtypes else 1e-8


def rounding_of_repeats(*dtypes: torch.dtype) -> float:
    """The largest relative error between two runs of the same kernels on the same numbers.

    It is not 0: an accelerator's sums in no fixed order may differ in their last digits.

    Args:
        *dtypes: The dtypes of the computation; the coarsest counts.
    """
    return 0.03 * rounding_of(*dtypes) if set(dtypes) - {torch.float64} else 1e-11


def rounding_of_tf32() -> float:
    """The largest relative error where float32 products and convolutions may run in TF32; 0 where they may not."""
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return 0.02 if allowed else 0.0


def close(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Whether two tensors have the same shape and a small relative distance; True where the reference is not finite.

    Args:
        a: The tensor to compare.
        b: The reference, whose norm the distance is relative to.
        tolerance: Relative tolerance; None: that of rounding.
    """
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = rounding_of(a.dtype, b.dtype) if tolerance is None else tolerance
    a, b = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    size = torch.linalg.vector_norm(b)
    return bool(torch.linalg.vector_norm(a - b) <= tolerance * size) or not bool(size.isfinite())


def is_looked_at(step: int) -> bool:
    """Whether a step, counted from 1, is always checked: 1, 10, 100, ..."""
    return str(step).strip("0") == "1"
