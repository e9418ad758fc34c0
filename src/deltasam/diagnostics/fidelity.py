"""How close each method's gradient comes to that of one perturbation per example, on a model and batches at hand."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltasam.core.checks import positive
from deltasam.core.passes import Closure
from deltasam.diagnostics.axes import axes_or_new
from deltasam.diagnostics.batches import restoring_state
from deltasam.diagnostics.closeness import Closeness, Fidelity, compare, ratio, rounding
from deltasam.diagnostics.floor import BestWeights
from deltasam.diagnostics.measure import Harness, Measurement
from deltasam.method import Method, hyperparameters
from deltasam.methods.erm import ERM
from deltasam.methods.per_instance_sam import PerInstanceSAM
from deltasam.methods.sam import SAM
from deltasam.scheduled import Scheduled
from deltasam.spec import make_method, method_names, short_spec, split_specs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fidelity(
    model: nn.Module,
    closure: Closure | Iterable[Closure],
    methods: str | Sequence[str | Method] | None = None,
    *,
    rho: float = 0.02,
    floor: bool = False,
) -> list[Fidelity]:
    """Measure how close methods come to exact per-instance SAM, ``mean_i grad L_i(w + rho * g_i / |g_i|)``.

    On each batch every method starts from the same random state, so with the same dropout masks; from batch to batch
    the random state goes on. The model stays in the mode, training or evaluation, in which it is. ``.grad``, weights,
    buffers and random state are afterwards what they were, bit for bit, also after an exception.

    All is compared at one radius: the exact gradient is taken at ``rho``, and so is every method given as a spec,
    unless the spec says otherwise, as ``sam:rho=0.1`` does. Method objects keep their own rho. Methods of equal rho
    need not go equally far: ASAM's is in units of the weights. ``Closeness.distance`` says how far each one went; a
    comparison is at one radius where it is 1.

    Args:
        model: The model, with the weights to measure at.
        closure: Runs one forward on a batch and returns one loss per example [n] (see ``deltasam.core.closure``); or
            several such closures, one per batch. Each is called many times, and only while it is measured.
        methods: Specs (``sam``, ``delta_sam:sigma=1e-3``), in a list or separated by commas, and methods made for this
            model. Default: ``default_methods()``.
        rho: Radius of the exact perturbations.
        floor: Whether to search for the weights of the examples with which one perturbation for all comes nearest: what
            reweighting can do at most (``BestWeights``). Needs one loss per example. Cost: some seventy passes a batch.

    Returns:
        One result per method, in the order given; then that of the floor.

    Raises:
        ValueError: rho is not above 0, a method is unknown, has a schedule, is not for this model or cannot use the
            closure's loss, or there is no closure or no method.
    """
    rho = positive("fidelity", "rho", rho)
    chosen = [_made(m, model, rho) for m in _listed(methods)]
    run = _FidelityRun(model, chosen, rho, BestWeights(model, rho=rho) if floor else None)
    with restoring_state(model):
        for number, one in enumerate([closure] if callable(closure) else closure):
            run.judge(one, number)
    return run.results()


def default_methods() -> list[str]:
    """Every method that a batch alone tells where to move, but the exact one, after plain training: the zero line.

    Those that read the optimizer have no past here, and those of one pass know no ascent of this batch.
    """
    with_rho = [name for name in method_names() if "rho" in hyperparameters(Method.registry[name])]
    return [ERM.name, *(name for name in with_rho if name != PerInstanceSAM.name and _needs_no_past(name))]


def _needs_no_past(name: str) -> bool:
    cls = Method.registry[name]
    return cls.follow is Method.follow and cls.loss_is_perturbed is Method.loss_is_perturbed


def at_radius(spec: str, rho: float) -> str:
    """The spec with this rho, where the method has one and the spec does not give it.

    An unknown method is left as it is: ``make_method`` says what there is. Schedules stay.
    """
    plain, at, schedules = spec.strip().partition("@")
    name, _, arguments = plain.partition(":")
    given = [a.strip() for a in arguments.split(",") if a.strip()]
    cls = Method.registry.get(name)
    if cls is None or "rho" not in hyperparameters(cls) or any(a.partition("=")[0].strip() == "rho" for a in given):
        return spec
    return f"{name}:{','.join([*given, f'rho={rho!r}'])}{at}{schedules}"


def rho_of(spec: str) -> float | None:
    """The radius in a full spec; None for a method that has none."""
    _, _, arguments = spec.partition("@")[0].partition(":")
    given = dict(argument.split("=", 1) for argument in arguments.split(",") if argument)
    return float(given["rho"]) if "rho" in given else None


def spec_with_rho(spec: str) -> str:
    """``short_spec`` with the radius, also where it is the method's default.

    Args:
        spec: A full spec.
    """
    rho = rho_of(spec)
    return short_spec(spec) if rho is None else at_radius(short_spec(spec), rho)


class _FidelityRun:
    """The methods, the three they are judged by, and what was found so far."""

    def __init__(self, model: nn.Module, methods: list[Method], rho: float, floor: BestWeights | None) -> None:
        self._harness, self._rho = Harness(model), rho
        self._exact = PerInstanceSAM(model, rho=rho, unsupported="loop")  # exact for any model
        self._plain, self._sam = ERM(model), SAM(model, rho=rho)
        self._floor = floor
        self._methods = [*methods, *([floor] if floor else [])]
        self._found: list[list[Closeness]] = [[] for _ in self._methods]
        self._costs: list[list[float]] = [[] for _ in self._methods]

    def judge(self, closure: Closure, number: int) -> None:
        """Measure every method on one batch. One gradient at a time is held beside the exact and the plain one."""
        self._harness.begin()
        exact, plain = (self._harness.measure(m, closure) for m in (self._exact, self._plain))
        seconds = []
        best: tuple[float, Tensor | None] = (math.inf, None)
        for method, found in zip(self._methods, self._found, strict=True):
            if method is self._floor:
                self._floor.aim_at(exact.gradient, best[1])
            measured = self._harness.measure(method, closure)
            found.append(self._closeness(measured, exact, plain))
            seconds.append(measured.seconds)
            if measured.weights is not None and found[-1].error < best[0]:
                best = found[-1].error, measured.weights
        sam = self._harness.measure(self._sam, closure).seconds  # last: the first ones pay for fresh memory
        for costs, own in zip(self._costs, seconds, strict=True):
            costs.append(own / sam)
        if math.isnan(self._found[-1][-1].error) and math.isnan(self._closeness(plain, exact, plain).error):
            warnings.warn(
                f"fidelity(rho={self._rho}): on batch {number} the exact gradient is not finite, or differs from the "
                f"plain one by no more than rounding: what is measured in units of the difference is NaN; raise rho, "
                f"or compute in a wider floating-point type",
                RuntimeWarning,
                stacklevel=3,
            )

    def results(self) -> list[Fidelity]:
        """What was found, per method."""
        if not self._costs[0]:
            raise ValueError("fidelity(closure=...): there is no closure in it; give one per batch")
        return [
            Fidelity(method.spec, tuple(found), statistics.median(costs), self._rho)
            for method, found, costs in zip(self._methods, self._found, self._costs, strict=True)
        ]

    def _closeness(self, measured: Measurement, exact: Measurement, plain: Measurement) -> Closeness:
        epsilon = self._harness.epsilon
        return Closeness(
            **compare(measured.gradient, exact.gradient, plain.gradient, epsilon=epsilon),
            loss_share=ratio(measured.rise, exact.rise, rounding(exact.loss, epsilon)),
            distance=ratio(measured.distance, self._rho) if measured.distance > 0 else math.nan,
        )


def _listed(methods: str | Sequence[str | Method] | None) -> Sequence[str | Method]:
    if methods is None:
        return default_methods()
    listed = split_specs(methods) if isinstance(methods, str) else methods
    if not listed:
        raise ValueError("fidelity(methods=...): there is no method in it; give at least one")
    return listed


def _made(method: str | Method, model: nn.Module, rho: float) -> Method:
    made = make_method(at_radius(method, rho), model) if isinstance(method, str) else method
    if made.model is not model:
        raise ValueError(f"fidelity: {method!r} was made for another model; make it for the one that is measured")
    if isinstance(made, Scheduled):
        raise ValueError(
            f"fidelity: {made.spec} has a schedule, so that its radius changes from step to step; give "
            f"{made.spec.partition('@')[0]}, with the rho to measure at"
        )
    return made


_SHOWN = {"error": ("o", 0), "cosine": ("s", 1), "loss_share": ("D", 1)}
"""Each number's marker, and its value for the exact gradient."""


def plot_fidelity(results: Sequence[Fidelity], ax: Axes | None = None) -> Axes:
    """Draw error, cosine and loss share of each method: means over the batches, with standard deviations as bars.

    Args:
        results: One per method. A number that is undefined for a method is left out.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    for i, (number, (marker, exact)) in enumerate(_SHOWN.items()):
        found = [(y, getattr(r.mean, number), getattr(r.spread, number)) for y, r in enumerate(results)]
        defined = [(y + (i - 1) * 0.2, mean, spread) for y, mean, spread in found if not math.isnan(mean)]
        y, means, spreads = ([point[k] for point in defined] for k in range(3))
        bars = [0.0 if math.isnan(spread) else spread for spread in spreads]
        ax.errorbar(means, y, xerr=bars, fmt=marker, capsize=3, label=f"{number.replace('_', ' ')} (exact: {exact})")
    for x in (0, 1):
        ax.axvline(x, linestyle=":", linewidth=1, color="gray")
    ax.set_yticks(range(len(results)), [spec_with_rho(r.method) for r in results])
    ax.invert_yaxis()
    ax.set(xlabel="mean over the batches, and standard deviation", ylabel="method")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    return ax
