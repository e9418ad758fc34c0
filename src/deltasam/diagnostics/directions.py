"""Random directions in weight space that are as long, row by row, as the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def filter_normalised(params: Sequence[nn.Parameter], generator: torch.Generator) -> list[Tensor | None]:
    """A Gaussian direction whose rows have the norms of the weights' rows; None for vectors and scalars.

    A row is what belongs to one output: of a matrix a row, of a convolution a filter, of an embedding a token's vector.
    Biases, parameters of norms and every other vector do not move, and neither does a row of zeros. A network whose
    weights are rescaled without a change of its function then has the same slices (Li et al. 2018, arXiv 1712.09913,
    section 4).

    Args:
        params: The parameters.
        generator: On the CPU: the same direction on every device.
    """
    return [None if p.ndim < 2 else _rows_as_long_as(p.detach(), generator) for p in params]


def _rows_as_long_as(weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator, device="cpu").to(
        weight.device, torch.promote_types(weight.dtype, _LEAST)
    )
    own, wanted = _row_norms(noise), _row_norms(weight.to(noise.dtype))
    return noise.mul_(wanted / own)  # Gaussian rows have no norm of 0


def _row_norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)


_LEAST = torch.float32
