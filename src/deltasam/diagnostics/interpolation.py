"""The loss on the straight line between two checkpoints of one architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltasam.core.checks import nonnegative
from deltasam.core.passes import Closure
from deltasam.diagnostics.axes import axes_or_new
from deltasam.diagnostics.batches import restoring_state
from deltasam.diagnostics.data_loss import DataLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LossPath:
    """The loss on the line ``w + t (w' - w)`` through the weights of two checkpoints.

    Attributes:
        coordinates: t; 0 is the first checkpoint, 1 the second.
        losses: Mean loss at each, in units of the loss.
        distance: Euclidean distance between the two over all parameters.
        barrier: The most that the loss between them is above ``(1 - t) L(0) + t L(1)``; 0 where it never is.
    """

    coordinates: tuple[float, ...]
    losses: tuple[float, ...]
    distance: float
    barrier: float

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        return (
            f"Between the two checkpoints, {self.distance:.3g} apart, the loss rises at most {self.barrier:.3g} above "
            f"the straight line between their losses. Without a barrier they are said to lie in one basin, as "
            f"fine-tunings of one model often do (Frankle et al. 2020, arXiv 1912.05671). A barrier does not say that "
            f"no other way leads around it, nor does its absence say that one of the two is better: networks that "
            f"compute the same with their units in another order have a barrier too. It is seen only at the points "
            f"that were measured."
        )


def loss_path(
    model: nn.Module,
    other: nn.Module | Mapping[str, Tensor],
    closures: Sequence[Closure],
    *,
    points: int = 11,
    beyond: float = 0.3,
) -> LossPath:
    """Measure the mean loss on the straight line from a model's weights to another's, and a bit beyond each.

    All parameters move, trainable or not, and with them the buffers that hold floating-point numbers, as running
    statistics do; other buffers stay. Evaluation mode unless dropout is meant. Afterwards all is what it was, bit for
    bit, also after an exception. The barrier is that of Entezari et al. 2022 (arXiv 2110.06296, equation 1).

    Args:
        model: One end; the closures run it.
        other: The other end: a model, or its ``state_dict()``.
        closures: One per batch; each runs one forward and returns one loss per example [n].
        points: How many from end to end, both counted.
        beyond: How far to go on beyond each end, as a share of the distance; rounded up to whole steps.

    Raises:
        ValueError: The two have other parameters or shapes, an argument cannot be used, or a closure returns a scalar.
    """
    if points < 2:
        raise ValueError(f"loss_path(points={points}): give 2 or more; both ends are counted")
    steps = points - 1
    further = math.ceil(nonnegative("loss_path", "beyond", beyond) * steps - 1e-9)
    line = _Line(model, other)
    loss = DataLoss("loss_path", model, closures, line.params)
    grid = tuple(i / steps for i in range(-further, steps + further + 1))
    losses = []
    for t in grid:
        with line.buffers_at(t):
            losses.append(loss.at(line.steps, t))
    inner = slice(further, further + points)
    return LossPath(grid, tuple(losses), line.distance, barrier(grid[inner], losses[inner]))


def barrier(coordinates: Sequence[float], losses: Sequence[float]) -> float:
    """The most that losses are above the straight line from the first to the last; coordinates go from 0 to 1."""
    first, last = losses[0], losses[-1]
    return max(loss - ((1 - t) * first + t * last) for t, loss in zip(coordinates, losses, strict=True))


def plot_path(results: LossPath | Mapping[str, LossPath], ax: Axes | None = None) -> Axes:
    """Draw the loss on the line, with both ends marked and the straight line between their losses.

    Args:
        results: One, or several by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = results if isinstance(results, Mapping) else {"": results}
    for name, result in named.items():
        (line,) = ax.plot(result.coordinates, result.losses, marker=".", label=name)
        ends = [result.losses[result.coordinates.index(t)] for t in (0.0, 1.0)]
        ax.plot([0, 1], ends, linestyle="--", linewidth=1, marker="o", color=line.get_color())
    ax.set(xlabel="position on the line (0: first checkpoint, 1: second)", ylabel="mean loss")
    if any(named):
        ax.legend()
    return ax


class _Line:
    """From a model's state to another: which parameters and buffers differ in what."""

    def __init__(self, model: nn.Module, other: nn.Module | Mapping[str, Tensor]) -> None:
        end = dict(other.state_dict()) if isinstance(other, nn.Module) else dict(other)
        own = model.state_dict()
        _check_names(model, own, end)
        self._model = model
        names = _names_by_parameter(model)
        self.params = list(names)
        ends = [end[next(name for name in known if name in end)] for known in names.values()]
        self.steps = [
            e.detach().to(p.device, _wide(p.dtype)) - p.detach().to(_wide(p.dtype))
            for p, e in zip(self.params, ends, strict=True)
        ]
        squares = [float(torch.linalg.vector_norm(step.double())) ** 2 for step in self.steps]
        self.distance = math.sqrt(sum(squares))
        self._buffers = [
            (buffer, end[name].detach().to(buffer.device, buffer.dtype) - buffer.detach())
            for name, buffer in model.named_buffers()
            if name in own and buffer.is_floating_point()
        ]

    @contextmanager
    def buffers_at(self, t: float) -> Iterator[None]:
        """Floating-point buffers moved along; put back whatever happens."""
        with restoring_state(self._model), torch.no_grad():
            for buffer, step in self._buffers:
                buffer.add_(step, alpha=t)
            yield


def _names_by_parameter(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every name of each parameter: tied ones have several."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(parameter, []).append(name)
    return found


def _check_names(model: nn.Module, own: Mapping[str, Tensor], end: Mapping[str, Any]) -> None:
    """Check that both ends have the same parameters and buffers.

    Raises:
        ValueError: They have not.
    """
    tied = _names_by_parameter(model).values()
    enough = {name for names in tied if any(n in end for n in names) for name in names}  # one name of tied ones will do
    missing = [name for name in own if name not in end and name not in enough]
    unknown = [name for name in end if name not in own]
    if missing or unknown:
        lacking = [f"it lacks {_some(missing)}"] * bool(missing) + [f"it has {_some(unknown)}"] * bool(unknown)
        raise ValueError(
            f"loss_path(other=...): not the same architecture: {', '.join(lacking)}; give two checkpoints of one model"
        )
    for name, tensor in end.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"loss_path(other=...): {name} has the shape {list(tensor.shape)} there, {list(own[name].shape)} here; "
                f"give two checkpoints of one model"
            )
    for names in tied:
        there = [end[n] for n in names if n in end]
        if any(not torch.equal(there[0], t) for t in there[1:]):
            raise ValueError(f"loss_path(other=...): {' and '.join(names)} are one here, but differ there; tie them")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
