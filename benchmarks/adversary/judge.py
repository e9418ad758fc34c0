"""Whether a method gave what the oracle gives, refused with a reason, gave something else, or broke.

``exact``: everything that was promised agrees to a relative error of ``TOLERANCE``: gradient, loss, loss at the
perturbed weights, norms of the examples' gradients, and afterwards weights, buffers and random state.
``refused``: an error that deltasam raised on purpose; weights, buffers and random state are as before.
``wrong``: anything else came out.
``crashed``: an exception that is no refusal, such as a TypeError from inside.
"""

from __future__ import annotations

import copy
import re
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import deltasam
from adversary.oracle import Answer, Generators, Gradient, Losses, Oracle, difference, of_copies
from deltasam.per_example import outer_products as outer

TOLERANCE = 1e-8
RHO = 0.1
TILT = 0.7
_SMALL = outer.SMALL
ORDER = ("wrong", "crashed", "refused", "exact")
SPECS = (
    f"per_instance_sam:rho={RHO}",
    f"per_instance_sam:rho={RHO},m=2",
    f"per_instance_sam:rho={RHO},unsupported=skip",
    f"per_instance_sam:rho={RHO},unsupported=loop",
    "per_example_grad_norms",
    f"delta_sam:rho={RHO},weights=norms",
    f"rw_sam:rho={RHO},weights=norms,tilt={TILT}",
    f"sam:rho={RHO}",
)


@dataclass
class Outcome:
    """What came of one method on one batch, or of the worst of several.

    Attributes:
        kind: One of ``ORDER``, or ``not judged`` where the oracle itself has no stable answer.
        reason: Why, in a few words that are the same for equal causes.
        error: The largest relative error.
        detail: The whole message, or a traceback.
    """

    kind: str
    reason: str = ""
    error: float = 0.0
    detail: str = ""


@dataclass
class Case:
    """A model, a batch, and how the loss is made of them.

    Attributes:
        model: At the state before the step.
        losses: One per example [n]; where examples interact in the loss, this is the loss of the rows.
        scalar: The closure returns the mean.
        tolerance: The largest relative error that counts as exact.
        outputs: Rows of the model's output, where examples interact in the loss.
        loss_of: From these rows to the loss.
        n: Number of examples.
    """

    model: nn.Module
    losses: Losses
    n: int
    scalar: bool = False
    tolerance: float = TOLERANCE
    outputs: Callable[[nn.Module], Tensor] | None = None
    loss_of: Callable[[Tensor], Tensor] | None = None

    def closure(self, model: nn.Module) -> Tensor:
        """What the closure returns."""
        losses = self.losses(model)
        return losses.mean() if self.scalar else losses


def tolerance(model: nn.Module, losses: Losses) -> float:
    """What counts as exact for a model: more where it computes in float32 inside, whatever its weights are.

    Many language models do so in normalisation and softmax. There the last bits of float64 decide how a number is
    rounded to float32, and so the eighth digit of a result.
    """
    with _Narrow() as seen:
        losses(copy.deepcopy(model))
    return 1e-5 if seen.narrow else TOLERANCE


class _Narrow(TorchDispatchMode):
    """Notes whether anything is computed in less than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                self.narrow |= value.numel() > 1
        return result


class Truth:
    """The oracle's answers for a case, each computed once; and what the case is after a plain step."""

    def __init__(self, case: Case) -> None:
        self.case, self.start = case, Generators()
        self.plain = cache(lambda: Oracle(case.model, case.losses, None, self.start).plain_step())
        self._oracle = cache(lambda only: Oracle(case.model, case.losses, only, self.start))
        self._answer = cache(lambda spec, only: answer(case, self._oracle(only), spec, self.start))

    def answer(self, spec: str, only: frozenset[str] | None = None) -> Answer:
        """What a spec should give."""
        return self._answer(re.sub(",unsupported=[a-z]+", "", spec), only)

    def stable(self, spec: str, only: frozenset[str] | None = None) -> bool:
        """Whether the answer is finite and does not hang on the last bits of the weights."""
        wanted = self.answer(spec, only)
        if not all(v.isfinite().all() for v in wanted.gradient.values()):
            return False
        generator = torch.Generator().manual_seed(0)
        near = copy.deepcopy(self.case.model)
        with torch.no_grad():
            for p in near.parameters():
                p.mul_(1 + 1e-13 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        case = copy.copy(self.case)
        case.model = near
        moved = answer(case, Oracle(near, case.losses, only, self.start), spec, self.start)
        return difference(moved.gradient, wanted.gradient) < 1e-9 and _same_norms(moved.norms, wanted.norms) < 1e-9


def answer(case: Case, oracle: Oracle, spec: str, start: Generators) -> Answer:
    """What a spec should give, by the oracle."""
    name, _, text = spec.partition(":")
    values = dict(piece.split("=") for piece in text.split(",") if piece)
    rho, m = float(values.get("rho", 0)), int(values.get("m", 1))
    if name in ("per_instance_sam", "per_example_grad_norms") and case.outputs and case.loss_of:
        return of_copies(case.model, case.outputs, case.loss_of, rho, case.n, m, start)
    if name == "per_example_grad_norms":
        return Answer({}, oracle.loss(), norms=oracle.example_norms() / (case.n if case.scalar else 1))
    if name == "per_instance_sam":
        found = oracle.per_instance_sam(rho, m)
        if case.scalar and found.norms is not None:
            found.norms = found.norms / case.n
        elif found.norms is not None:
            found.norms = found.norms / m
        return found
    if name == "delta_sam":
        return oracle.delta_sam(rho, by_norms="norms" in spec)
    if name == "rw_sam":
        return oracle.rw_sam(rho, float(values["tilt"]))
    return oracle.sam(rho)


class Subject:
    """One method on one model, for as many steps as one likes.

    Args:
        spec: Of ``SPECS``.
        model: Its own; is brought to the state of each case.
        large: The engine uses the forms that it has for large layers.
    """

    def __init__(self, spec: str, model: nn.Module, *, large: bool = False) -> None:
        self.spec, self.model = spec, model
        self._small = 0 if large else _SMALL
        self._method = None if spec == "per_example_grad_norms" else deltasam.make_method(spec, model)

    def step(self, truth: Truth) -> Outcome:
        """Run a step on the case's batch, beginning at its state, and judge it."""
        case = truth.case
        become(self.model, case.model)
        outer.SMALL = self._small
        plain, after = truth.plain()
        before = truth.start
        before.restore()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self._run(case)
        except Exception as error:  # noqa: BLE001 - whatever comes out is judged
            outcome = of_exception(error)
            # What the forward itself writes into weights (max_norm) may stay, as after a plain one.
            left = self._changed(case.model, before, or_weights_of=plain)
            if outcome.kind == "refused" and left:
                outcome = Outcome("wrong", f"after a refusal {left} not as before", 1.0, outcome.detail)
            before.restore()
            return outcome
        changed = self._changed(plain, after)
        before.restore()
        return self._judge(truth, found, changed)

    def _run(self, case: Case) -> dict[str, Any]:
        if self._method is None:
            return {"norms": deltasam.per_example_grad_norms(self.model, lambda: case.closure(self.model))}
        step = self._method.backward(lambda: case.closure(self.model))
        return {
            "gradient": {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None},
            "loss": step.loss,
            "perturbed_loss": step.metrics.get("perturbed_loss"),
            "norms": step.metrics.get("group_grad_norms"),
        }

    def _only(self) -> frozenset[str] | None:
        if self._method is None or "unsupported=skip" not in self.spec:
            return None
        skipped = set(self._method._engine._skipped)
        return frozenset(name for name, _ in self.model.named_parameters() if name not in skipped) if skipped else None

    def _judge(self, truth: Truth, found: dict[str, Any], changed: str) -> Outcome:
        only = self._only()
        wanted = truth.answer(self.spec, only)
        if self._method is None:
            errors = {"norms": _same_norms(found["norms"], wanted.norms)}
        else:
            errors = {
                "gradient": difference(found["gradient"], wanted.gradient),
                "loss": _apart(found["loss"], wanted.loss),
                "perturbed loss": _apart(found["perturbed_loss"], wanted.perturbed_loss),
                "norms": _same_norms(found["norms"], wanted.norms),
            }
            if changed:
                errors[f"{changed} afterwards"] = 1.0
        worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
        error = errors[worst]
        if error < truth.case.tolerance:
            return Outcome("exact", error=error)
        if not truth.stable(self.spec, only):
            return Outcome("not judged", "the equation has no stable value", error)
        bad = [name for name, e in errors.items() if not e < truth.case.tolerance]
        return Outcome("wrong", bad[0], error, ", ".join(f"{n} {errors[n]:.1e}" for n in bad))

    def _changed(self, wanted: nn.Module, generators: Generators, or_weights_of: nn.Module | None = None) -> str:
        """What is not as it should be after a call."""
        now = Generators()
        allowed = [wanted, wanted if or_weights_of is None else or_weights_of]
        for name, p in self.model.named_parameters():
            if not any(torch.equal(model.get_parameter(name), p) for model in allowed):
                return "weights"
        for name, b in wanted.named_buffers():
            if not torch.allclose(self.model.get_buffer(name), b, rtol=1e-12, atol=1e-14):
                return "buffers"
        if self._method is None:
            return ""
        return "" if torch.equal(now._torch, generators._torch) else "random state"


def worst(outcomes: list[Outcome]) -> Outcome:
    """The outcome of several steps: wrong if one is, and so on."""
    for kind in ORDER:
        for outcome in outcomes:
            if outcome.kind == kind:
                return outcome
    return outcomes[0]


def become(model: nn.Module, state: nn.Module) -> None:
    """Bring a model to the state of another, in place: weights, buffers, modes, Python attributes, no gradients."""
    for one, other in zip(model.modules(), state.modules(), strict=True):
        one.training = other.training
        for name, value in vars(other).items():
            if not name.startswith("_") and isinstance(value, (Tensor, int, float, str, type(None))):
                vars(one)[name] = value.detach().clone() if isinstance(value, Tensor) else value
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, p in state.named_parameters():
            mine = model.get_parameter(name)
            mine.data.copy_(p)
            mine.requires_grad_(p.requires_grad)
            mine.grad = None
        for name, b in state.named_buffers():
            buffers[name].copy_(b)


def of_exception(error: Exception) -> Outcome:
    """Refused, if deltasam raised it on purpose; else crashed."""
    text = "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(deltasam.__file__).parent
    deliberate = isinstance(error, deltasam.NotCoveredError) or (
        isinstance(error, (RuntimeError, ValueError))
        and type(error).__name__ not in ("OutOfMemoryError",)
        and Path(frames[-1].filename).is_relative_to(own)
        and (frames[-1].line or "raise").startswith("raise")
        and len(str(error)) > 30
    )
    if deliberate:
        return Outcome("refused", reason_of(str(error)), detail=str(error))
    where = next((f for f in reversed(frames) if Path(f.filename).is_relative_to(own)), frames[-1])
    reason = f"{type(error).__name__} in {Path(where.filename).name}: {generic(str(error))}"
    return Outcome("crashed", reason[:160], detail=text)


def reason_of(message: str) -> str:
    """A refusal without names of parameters and numbers; the first, where there are several."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    listed = [line for line in message.splitlines() if line.startswith("  ") and ": " in line]
    if listed:
        return generic(listed[0].split(": ", 1)[1])
    return generic(lines[0])


def generic(text: str) -> str:
    """Without what differs from program to program."""
    text = re.sub(r"\b(?:self\.)?[a-z_]*\d+(?:\.[\w.]+)?\b", "_", " ".join(text.split()))
    return re.sub(r"\d+", "N", text)[:120]


def _apart(found: Tensor | None, wanted: Tensor | None) -> float:
    if found is None or wanted is None:
        return 0.0
    return float((found - wanted).abs() / wanted.abs().clamp(min=1e-6))


def _same_norms(found: Tensor | None, wanted: Tensor | None) -> float:
    if found is None or wanted is None:
        return 0.0
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


__all__ = ["Case", "Gradient", "Outcome", "Subject", "Truth", "worst"]
