"""Slices of the loss around the weights: along one random direction, and over the plane of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltasam.core.checks import positive
from deltasam.core.passes import Closure
from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.data_loss import DataLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CAUTION = (
    "A random direction is nearly at right angles to every direction in which the loss rises fast, so a slice "
    "looks flatter than the worst case is, and slices differ from seed to seed. It shows one line or plane among "
    "millions of dimensions; how it looks is no measure of how well the model generalises."
)


@dataclass(frozen=True)
class LossSlice:
    """The loss along one random direction.

    Attributes:
        coordinates: Steps from the weights, in lengths of the weights' rows: at 1 every row of every matrix has moved
            by its own norm.
        losses: Mean loss at each, in units of the loss.
        seed: Of the direction.
    """

    coordinates: tuple[float, ...]
    losses: tuple[float, ...]
    seed: int

    @property
    def rise(self) -> float:
        """Mean of the losses at the two ends, less the loss at the weights."""
        return (self.losses[0] + self.losses[-1]) / 2 - self.losses[len(self.losses) // 2]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        return (
            f"Along one random direction the loss changes by {self.rise:+.3g} on average over both sides, where every "
            f"row of the weights has moved by {self.coordinates[-1]:g} of its norm. {_CAUTION}"
        )


@dataclass(frozen=True)
class LossPlane:
    """The loss over the plane of two random directions.

    Attributes:
        coordinates: Steps along either direction, in lengths of the weights' rows.
        losses: Mean loss; ``losses[i][j]`` is at ``coordinates[j]`` along the first direction and ``coordinates[i]``
            along the second.
        seed: Of the directions.
    """

    coordinates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    seed: int

    @property
    def rise(self) -> float:
        """Mean of the losses at the border, less the loss at the weights."""
        rows, middle = self.losses, len(self.losses) // 2
        border = [*rows[0], *rows[-1], *(row[i] for row in rows[1:-1] for i in (0, -1))]
        return sum(border) / len(border) - rows[middle][middle]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        return (
            f"At the border of the plane, up to {self.coordinates[-1]:g} of the rows' norms away along each of two "
            f"random directions, the loss differs on average by {self.rise:+.3g} from that of the weights. {_CAUTION}"
        )


def loss_slice(
    model: nn.Module, closures: Sequence[Closure], *, distance: float = 1.0, points: int = 21, seed: int = 0
) -> LossSlice:
    """Measure the mean loss along one random, filter-normalised direction (``filter_normalised``).

    Evaluation mode unless dropout is meant; with dropout every point sees the same masks. Weights, gradients, buffers
    and random state are afterwards what they were, bit for bit, also after an exception.

    Args:
        model: The model, with the weights to measure at.
        closures: One per batch; each runs one forward and returns one loss per example [n].
        distance: How far to go to either side, in lengths of the weights' rows.
        points: How many, an odd number: the weights themselves are the middle one.
        seed: Of the direction.

    Raises:
        ValueError: An argument cannot be used, no trainable parameter is a matrix, or a closure returns a scalar.
    """
    grid = _grid("loss_slice", distance, points)
    loss = DataLoss("loss_slice", model, closures)
    (direction,) = _directions("loss_slice", loss, 1, seed)
    return LossSlice(grid, tuple(loss.at(direction, x) for x in grid), seed)


def loss_plane(
    model: nn.Module, closures: Sequence[Closure], *, distance: float = 1.0, points: int = 11, seed: int = 0
) -> LossPlane:
    """Measure the mean loss over the plane of two random, filter-normalised directions.

    The first is that of ``loss_slice`` with the same seed. Everything else is as there.

    Args:
        model: The model, with the weights to measure at.
        closures: One per batch; each runs one forward and returns one loss per example [n].
        distance: How far to go to either side along each direction, in lengths of the weights' rows.
        points: How many along each, an odd number; each batch is run ``points ** 2`` times.
        seed: Of the directions.

    Raises:
        ValueError: An argument cannot be used, no trainable parameter is a matrix, or a closure returns a scalar.
    """
    grid = _grid("loss_plane", distance, points)
    loss = DataLoss("loss_plane", model, closures)
    directions = _directions("loss_plane", loss, 2, seed)
    losses = tuple(tuple(loss.at(_combination([x, y], directions)) for x in grid) for y in grid)
    return LossPlane(grid, losses, seed)


def plot_slice(results: LossSlice | Mapping[str, LossSlice], ax: Axes | None = None) -> Axes:
    """Draw the loss along the direction, a line for each result, with the weights marked.

    Args:
        results: One, or several by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "loss")
    for name, result in named.items():
        ax.plot(result.coordinates, result.losses, marker=".", label=name)
    ax.axvline(0, linestyle=":", linewidth=1, color="gray")
    ax.set(xlabel="step along a random direction (norms of the weights' rows)", ylabel="mean loss")
    if len(named) > 1:
        ax.legend()
    return ax


def plot_plane(result: LossPlane, ax: Axes | None = None) -> Axes:
    """Draw the loss over the plane as contours, with the weights marked.

    Args:
        result: The plane.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    filled = ax.contourf(result.coordinates, result.coordinates, result.losses, levels=20)
    ax.contour(filled, colors="black", linewidths=0.3)
    ax.plot(0, 0, marker="x", markersize=9, markeredgewidth=2, color="white")
    ax.set(
        xlabel="step along direction 1 (norms of the weights' rows)", ylabel="step along direction 2", aspect="equal"
    )
    ax.figure.colorbar(filled, ax=ax, label="mean loss")
    return ax


def _grid(owner: str, distance: float, points: int) -> tuple[float, ...]:
    """Coordinates from ``-distance`` to ``distance``; the middle one is exactly 0."""
    positive(owner, "distance", distance)
    if points < 3 or points % 2 == 0:
        raise ValueError(f"{owner}(points={points}): give an odd number, 3 or more; the middle one is the weights")
    half = points // 2
    return tuple(distance * (i - half) / half for i in range(points))


def _directions(owner: str, loss: DataLoss, count: int, seed: int) -> list[list[torch.Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    directions = [filter_normalised(loss.params, generator) for _ in range(count)]
    if all(part is None for part in directions[0]):
        raise ValueError(f"{owner}: no trainable parameter has rows; vectors and scalars do not move in a slice")
    return directions


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


def _combination(factors: Sequence[float], vectors: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """``sum_k factors[k] * vectors[k]``, None where all of them are."""
    found: list[Tensor | None] = []
    for parts in zip(*vectors, strict=True):
        terms = [f * part for f, part in zip(factors, parts, strict=True) if part is not None and f]
        found.append(sum(terms[1:], start=terms[0]) if terms else None)
    return found
