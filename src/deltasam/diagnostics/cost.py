"""What each method costs beside plain training, and where its time goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from deltasam.core.passes import Closure
from deltasam.core.restore import WeightStore
from deltasam.diagnostics.axes import axes_or_new
from deltasam.diagnostics.batches import restoring_state
from deltasam.diagnostics.fidelity import spec_with_rho
from deltasam.diagnostics.peak_memory import PeakMemory
from deltasam.diagnostics.timing import Call, TimedCalls
from deltasam.method import Method
from deltasam.per_example.recorder import NotCoveredError
from deltasam.spec import full_spec, make_method, method_names, split_specs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class MethodCost:
    """One method on the same batches as the others.

    Attributes:
        method: Its full spec.
        seconds: Of ``backward``, the median over batches and rounds.
        forward: The part of it in which the closure ran.
        backward: The part in which gradients were taken.
        rest: All else: weights moved and put back, norms, noise, copies of the random state.
        ratios: Seconds over those of plain training on the same batch in the same round, in order.
        forwards: How often the closure ran per call, a mean over the calls.
        backwards: How often a gradient was taken, likewise.
        peak_memory_mib: The most memory in use during a call on the first batch; None where the system does not tell.
    """

    method: str
    seconds: float
    forward: float
    backward: float
    rest: float
    ratios: tuple[float, ...]
    forwards: float
    backwards: float
    peak_memory_mib: float | None

    @property
    def ratio(self) -> float:
        """Seconds over those of plain training, the median."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Cost:
    """What methods cost on one model and some batches.

    Attributes:
        plain_forward: Seconds of one forward, the median.
        plain_backward: Seconds of one ``loss.backward()``, the median.
        methods: One entry per method that works here, in the order given.
        refused: Why the others do not work on this model and closure, by spec.
    """

    plain_forward: float
    plain_backward: float
    methods: tuple[MethodCost, ...]
    refused: dict[str, str]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        calls = len(self.methods[0].ratios)
        return (
            f"Times are medians over {calls} calls of each method, which took turns, beside a plain forward and "
            f"backward ({1000 * self.plain_forward:.0f} + {1000 * self.plain_backward:.0f} ms). They hold for this "
            f"machine, these batches and what else ran meanwhile: trust ratios more than seconds, and neither to a few "
            f"percent. The optimizer's step, loading of data and evaluation are not in them. Peak memory of a CPU is "
            f"that of the whole process, Python and libraries included."
        )


def cost(
    model: nn.Module, closures: Sequence[Closure], methods: str | Sequence[str] | None = None, *, rounds: int = 3
) -> Cost:
    """Time ``backward`` of several methods on the same batches, forward, backward and the rest apart.

    All take turns on every batch, so that a machine that slows down slows them all; each has been called once before.
    Training mode, as a method is used. Gradients, weights, buffers and random state are afterwards what they were, bit
    for bit, also after an exception.

    Args:
        model: The model.
        closures: One per batch; each runs one forward and returns what the methods need (``deltasam.core.closure``).
        methods: Specs, in a list or separated by commas. Default: every registered method.
        rounds: How often to go through all batches.

    Raises:
        ValueError: An argument cannot be used, a method is unknown, or none of them works on the model.
    """
    listed = split_specs(methods) if isinstance(methods, str) else list(methods or method_names())
    if rounds < 1 or not closures:
        raise ValueError(f"cost(rounds={rounds}) with {len(closures)} closures: give 1 or more of both")
    for spec in listed:
        if "@" in spec:
            raise ValueError(
                f"cost(methods={spec!r}): it has a schedule, so that no two steps cost alike; leave it out"
            )
    with restoring_state(model):
        timed = TimedCalls(model)
        working, memory, refused = _tried(timed, closures[0], [full_spec(spec) for spec in listed])
        calls: dict[str, list[Call]] = {spec: [] for spec in working}
        plain: list[Call] = []
        for _ in range(rounds):
            for closure in closures:
                plain.append(timed.plain(closure))
                for spec, method in working.items():
                    calls[spec].append(timed.call(method, closure))
    found = tuple(_cost_of(spec, calls[spec], plain, memory[spec]) for spec in working)
    forward, backward = (statistics.median(getattr(call, part) for call in plain) for part in ("forward", "backward"))
    return Cost(forward, backward, found, refused)


def plot_cost(result: Cost, ax: Axes | None = None) -> Axes:
    """Draw each method's time as a bar of forward, backward and the rest, with its ratio over plain training.

    Args:
        result: What was measured.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    names = [spec_with_rho(m.method) for m in result.methods]
    left = [0.0] * len(names)
    for part in ("forward", "backward", "rest"):
        widths = [1000 * getattr(m, part) for m in result.methods]
        ax.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, (end, m) in enumerate(zip(left, result.methods, strict=True)):
        ax.annotate(f"{m.ratio:.2f}x", (end, y), xytext=(4, 0), textcoords="offset points", va="center")
    ax.axvline(1000 * (result.plain_forward + result.plain_backward), linestyle=":", linewidth=1, color="gray")
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel="milliseconds per call (dotted: plain forward and backward)", ylabel="method")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)  # above: bars may be anywhere
    return ax


def _tried(
    timed: TimedCalls, closure: Closure, specs: Sequence[str]
) -> tuple[dict[str, Method], dict[str, float | None], dict[str, str]]:
    """The methods that work here and the peak memory of each; and why the others do not."""
    working: dict[str, Method] = {}
    memory: dict[str, float | None] = {}
    refused: dict[str, str] = {}
    device = str(next(timed.model.parameters()).device)
    shared = WeightStore()
    for spec in specs:
        method = make_method(spec, timed.model)
        method.follow(torch.optim.SGD(timed.model.parameters(), lr=0.0))  # never steps; some keep an average for it
        try:
            timed.call(method, closure)  # the first call of some checks more than later ones
        except (
            ValueError,
            TypeError,
            NotImplementedError,
            NotCoveredError,
        ) as error:  # how methods refuse models and closures
            refused[spec] = str(error)
            continue
        peak = PeakMemory(device)
        timed.call(method, closure)
        working[spec], memory[spec] = method, peak.mib()
        # A store of its own for each would be as many models, in the peaks of all that come after it too.
        for part in (method, *vars(method).values()):
            if isinstance(part, Method):
                part._store = shared
    if not working:
        raise ValueError(f"cost: no method works here; {next(iter(refused.values()), 'none was given')}")
    return working, memory, refused


def _cost_of(spec: str, calls: Sequence[Call], plain: Sequence[Call], memory: float | None) -> MethodCost:
    seconds = statistics.median(call.seconds for call in calls)
    total = sum(call.seconds for call in calls)
    forward, backward = (seconds * sum(getattr(c, part) for c in calls) / total for part in ("forward", "backward"))
    return MethodCost(
        method=spec,
        seconds=seconds,
        forward=forward,
        backward=backward,
        rest=seconds - forward - backward,
        ratios=tuple(own.seconds / other.seconds for own, other in zip(calls, plain, strict=True)),
        forwards=statistics.fmean(call.forwards for call in calls),
        backwards=statistics.fmean(call.backwards for call in calls),
        peak_memory_mib=memory,
    )
