"""How much a model forgets of one task while it learns another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from deltasam.core.checks import whole
from deltasam.core.closure import loss_of
from deltasam.core.passes import Closure
from deltasam.core.restore import WeightStore
from deltasam.core.sharding import is_sharded
from deltasam.diagnostics.after.weights import Evaluate, evaluated, holding
from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.batches import restoring_state

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ForgettingPoint:
    """Where the model is after some steps on task B.

    Attributes:
        step: How many were made.
        loss: On task B, in units of it.
        metrics: On task A.
    """

    step: int
    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Forgetting:
    """What is left of task A while task B is learned.

    Attributes:
        points: From the model as it came (step 0) to the last step.
    """

    points: tuple[ForgettingPoint, ...]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        first, last = self.points[0], self.points[-1]
        kept = ", ".join(f"{name} from {x:.3g} to {last.metrics[name]:.3g}" for name, x in first.metrics.items())
        return (
            f"{last.step} steps on task B bring its loss from {first.loss:.3g} to {last.loss:.3g}, and on task A "
            f"{kept}. Compare two models at the same loss on B (at_loss), not after the same steps: one that learns B "
            f"more slowly has forgotten less by then for that reason alone. It holds for these two tasks and this "
            f"optimizer."
        )

    def at_loss(self, loss: float) -> dict[str, float]:
        """The metrics on task A where the loss on task B first comes down to this, on straight lines between points.

        Raises:
            ValueError: It starts below or never comes down so far.
        """
        start = self.points[0]
        if loss == start.loss:
            return dict(start.metrics)
        for a, b in pairwise(self.points):
            if a.loss > loss >= b.loss:
                t = (a.loss - loss) / (a.loss - b.loss)
                return {name: (1 - t) * a.metrics[name] + t * b.metrics[name] for name in a.metrics}
        raise ValueError(
            f"at_loss({loss:g}): the loss on task B goes from {start.loss:.4g} down to "
            f"{min(p.loss for p in self.points):.4g}; give a loss between, or take more steps"
        )


def forgetting(
    model: nn.Module,
    closures: Sequence[Closure],
    evaluate: Evaluate,
    loss: Callable[[], float],
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    *,
    steps: int = 300,
    every: int = 30,
) -> Forgetting:
    """Train a model on task B by plain steps, and follow its loss on B and its metrics on task A.

    Each step takes the gradient of one closure's mean loss, the closures in turn; no method, no schedule, no clipping.
    The model stays in the mode in which it is, so dropout is on where it is in training mode. Trainable parameters are
    trained, frozen ones are not. Weights, gradients, buffers and random state are afterwards what they were, bit for
    bit, also after an exception. Meanwhile there is a copy of the trainable weights, beside the optimizer's state.

    Args:
        model: As it is after training on task A.
        closures: One per batch of task B; each runs one forward and returns its losses, a scalar or one per example.
        evaluate: Runs the model on task A and gives its metrics.
        loss: Runs the model on task B and gives its mean loss, best on rows that are not learned from.
        optimizer: Makes the optimizer of the trainable parameters: ``lambda params: torch.optim.SGD(params, lr=0.1)``.
        steps: How many.
        every: Steps from one measurement to the next; the last step is always measured.

    Raises:
        ValueError: There is no closure or no trainable parameter, weights are sharded, or an argument cannot be used.
    """
    steps, every = whole("forgetting", "steps", steps), whole("forgetting", "every", every)
    params = [p for p in model.parameters() if p.requires_grad]
    if not closures or not params:
        raise ValueError(f"forgetting: there is no {'trainable parameter' if closures else 'closure'}")
    if any(map(is_sharded, params)):
        raise ValueError("forgetting: the weights are sharded between processes; measure the saved model in one")

    def point(step: int) -> ForgettingPoint:
        with restoring_state(model):  # what is measured shifts no dropout mask of a step
            on_b = float(loss())
        return ForgettingPoint(step, on_b, evaluated("forgetting", model, evaluate))

    with restoring_state(model), holding(params, (p.detach() for p in params), WeightStore()):
        for p in params:  # they are put back as the tensors they were: a step must not write into them
            p.grad = None
        trained, points = optimizer(params), [point(0)]
        for step in range(1, steps + 1):
            with torch.enable_grad():
                loss_of(closures[(step - 1) % len(closures)]()).backward()
            trained.step()
            trained.zero_grad()
            if step % every == 0 or step == steps:
                points.append(point(step))
    return Forgetting(tuple(points))


def plot_forgetting(
    results: Forgetting | Mapping[str, Forgetting], metric: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a metric on task A over the loss on task B, which is learned from left to right.

    Args:
        results: One, or several by name.
        metric: Which; the first that ``evaluate`` gave unless told.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "model")
    metric = metric or next(iter(next(iter(named.values())).points[0].metrics))
    for name, result in named.items():
        ax.plot([p.loss for p in result.points], [p.metrics[metric] for p in result.points], marker=".", label=name)
    ax.invert_xaxis()
    ax.set(xlabel="loss on task B", ylabel=f"{metric} on task A")
    if len(named) > 1:
        ax.legend()
    return ax
