"""When two results of one computation, done in two ways, are the same: equal but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from deltasam.core.vectors import HALF_DTYPES


def rounding_of(*dtypes: torch.dtype) -> float:
    """The largest relative error that rounding may leave after a whole model, forwards and backwards.

    Args:
        *dtypes: That are computed in; the coarsest counts.
    """
    if any(d in HALF_DTYPES for d in dtypes):
        return 0.1
    return 1e-3 if torch.float32 in dtypes else 1e-8


def rounding_of_repeats(*dtypes: torch.dtype) -> float:
    """The same where equal numbers go through equal kernels, and not through two ways to compute.

    Args:
        *dtypes: As above. What an accelerator adds in no fixed order may differ in its last digits.
    """
    return 0.03 * rounding_of(*dtypes) if set(dtypes) - {torch.float64} else 1e-11


def rounding_of_tf32() -> float:
    """The same where products and convolutions of float32 may be computed in TF32; 0 where they may not."""
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return 0.02 if allowed else 0.0


def close(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Whether two tensors have one shape, and a distance that is small beside their size; infinite ones show nothing.

    Args:
        a: One.
        b: The other; its size counts.
        tolerance: Relative; that of rounding unless given.
    """
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = rounding_of(a.dtype, b.dtype) if tolerance is None else tolerance
    a, b = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    size = torch.linalg.vector_norm(b)
    return bool(torch.linalg.vector_norm(a - b) <= tolerance * size) or not bool(size.isfinite())
