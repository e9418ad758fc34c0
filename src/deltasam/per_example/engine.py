"""First passes that know every example's gradient, checked against autograd the first time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deltasam.core.closure import losses_of
from deltasam.core.only import Only
from deltasam.core.passes import Passes
from deltasam.core.surroundings import interrupt_behind
from deltasam.core.torch_internals.compiled import eager, is_compiled
from deltasam.core.warn import warn
from deltasam.per_example.check_history import Behaviour, Checked, Fingerprint
from deltasam.per_example.checks import (
    WHOLE,
    Check,
    Verdict,
    complex_parameters,
    coupling_layers,
    find_indivisible_rows,
)
from deltasam.per_example.coverage import Coverage, coverage_of
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.handlers.tracer import FAILURES
from deltasam.per_example.recorder import NotCoveredError, Record

_SHOWN = 5


class Engine:
    """Per-example gradients of a model.

    The first pass is checked against plain PyTorch (``check``), and so is every pass that does something new: other
    parameters or functions, another layout of rows, modules that change between training and evaluation. What shows in
    none of these may show later: so the passes 10, 100, 1000, ... are checked as well. A gradient that is 0 or not
    finite shows nothing, and the next pass is checked.

    Args:
        model: The model.
        skip: Parameters that are not covered are taken for constants, instead of being an error.
        check: Whether anything is checked.
        checked: What is known already, and will be.
        only: Which parameters' gradients are wanted; None: of all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        skip: bool = False,
        check: bool = True,
        checked: Checked | None = None,
        only: Only | None = None,
    ) -> None:
        self.coverage: Coverage | None = None
        self._model, self._skip, self._check = model, skip, check
        self._checked = checked or Checked()
        self._skipped: dict[str, str] = {}
        self._only = only or Only(type(model).__name__, None)
        self._said = False

    @property
    def losses_apart(self) -> bool:
        """Whether the loss of one example depends on no other in the last pass."""
        return self._checked.losses_apart

    def eager(self, method: str) -> AbstractContextManager[object]:
        """Around all passes of a step: compiled parts run as they were written; the first time, a warning says so.

        Args:
            method: The name of the method that asks, for the warning.
        """
        if not self._said and is_compiled(self._model.modules()):
            self._said = True
            warn(
                f"{method} runs the compiled model as it was written: compiled code does not show what becomes of each "
                f"example; to train at the speed of compiled code use SAM, ASAM or DeltaSAM(weights='slopes')"
            )
        return eager()

    def state_dict(self) -> dict[str, Any]:
        """What the checks found, in JSON values: nothing if nothing was checked."""
        if not self._skipped:
            return {}
        return {"skipped": dict(self._skipped), "checked": sorted(self._checked.trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Treat the parameters from the first step as they were treated; others are still looked for."""
        self._skipped = dict(state.get("skipped", {})) if self._skip else {}
        self._checked.trained = frozenset(state.get("checked", ()))

    def first(self, passes: Passes) -> tuple[Any, Record]:
        """Run the first pass; returns what the closure returned, and the record of it."""
        self._checked.passes += 1
        trained = frozenset(passes.structure.trained)
        if trained != self._checked.trained:
            self._skipped, self._checked.trained = {}, trained
        if lazy := [name for name, p in passes.structure.parameters.items() if is_lazy(p)]:
            raise NotCoveredError(
                f"{', '.join(lazy[:_SHOWN])}: is not there before the first forward (a lazy module); run the model "
                f"once, under torch.no_grad(), before the first step"
            )
        record, handled = Record(passes.structure, skip=self._left_out(passes)), sys.exc_info()[1]
        try:
            with record.open():
                output = passes.first()
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError) or interrupt_behind(error, handled):
                raise
            passes.rollback()
            output = passes.first()  # if the closure fails by itself, it does so here
            cause = str(error).partition("\n")[0]
            why = f"its forward pass fails while its functions are watched ({type(error).__name__}: {cause})"
            record.spoiled = {WHOLE: why}
        record.refuse_packed()
        return output, record

    def gradients(self, passes: Passes, record: Record, loss: Tensor, m: int) -> ExampleGradients:
        """The gradient of every group of m consecutive examples.

        Args:
            passes: Whose first pass was recorded.
            record: Of it.
            loss: Its loss [], or one per example [n], of which the sum is taken. Its graph is used up.
            m: Divides the number of examples.

        Raises:
            NotCoveredError: The gradients cannot be computed exactly.
            ValueError: m does not divide the number of examples.
        """
        self._refuse(record, record.spoiled)
        n = record.examples(loss)
        if n % m:
            raise ValueError(
                f"m={m} must divide the number of examples in the batch, which is {n}; drop the last, smaller batch, "
                f"train on a number of rows that m divides (--train-size), or use m=1"
            )
        gradients = self._checked_gradients(passes, record, loss, n // m)
        if known := self._checked.behaviours.get(record.behaviour):
            self._checked.losses_apart = record.losses_apart = known.losses_apart
        record.forget_graph()
        return gradients

    # Checking: what stands against a pass before its gradients are computed, and what is wrong with them afterwards.

    def _checked_gradients(self, passes: Passes, record: Record, loss: Tensor, groups: int) -> ExampleGradients:
        """The gradients, of another pass where some parameters had to be left out; checked where a check is due."""
        loss, gradients = self._compute(passes, record, loss, groups)
        inner = passes.ran_inner_backwards and not self._skipped  # a check says whose gradients they hide
        # What a hook makes of a gradient hangs on the gradient: a check of another step says nothing of it.
        unknown = self._check and (self._checked.is_due(record.behaviour) or inner or record.hooked)
        if not passes.any_process(unknown):
            return gradients
        while (verdict := self._verdict(passes, record, loss, gradients)).reasons:
            if not verdict.of_single_uses:
                self._refuse(record, verdict.reasons)
            loss, gradients = self._compute(passes, record, loss, groups, without=verdict.reasons)
        self.coverage = coverage_of(self._model, record.uses, record.names, self._left_out(passes))
        if verdict.conclusive:
            found = Behaviour(frozenset(gradients.thin), verdict.losses_apart)
            self._checked.behaviours[record.behaviour] = found
        return gradients

    def _verdict(self, passes: Passes, record: Record, loss: Tensor, gradients: ExampleGradients) -> Verdict:
        return Check(self._model, passes, record, loss, gradients, seed=self._checked.passes).verdict()

    def _find_uncovered(self, record: Record, loss: Tensor) -> Mapping[str, str]:
        """Parameters that the recorded pass uses in a way without exact gradients: why, by name."""
        self._refuse(record, coupling_layers(record.structure.modules) | complex_parameters(record.parameters))
        return find_indivisible_rows(record.uses, record.examples(loss), record.names) | record.refusals

    def _refuse(self, record: Record, reasons: Mapping[str, str]) -> None:
        if reasons:
            self.coverage = coverage_of(self._model, record.uses, record.names, {**self._skipped, **reasons})
            raise NotCoveredError(_message(reasons))

    def _left_out(self, passes: Passes) -> dict[str, str]:
        """Parameters that are taken for constants: why, by name."""
        names = self._only.names(passes.structure)
        outside = {n: f"not moved: only={self._only.which}" for n in passes.structure.trained if n not in names}
        return {**outside, **self._skipped}

    # Computing.

    def _compute(
        self, passes: Passes, record: Record, loss: Tensor, groups: int, *, without: Mapping[str, str] | None = None
    ) -> tuple[Tensor, ExampleGradients]:
        """The loss and its gradients; both of another pass where some parameters have to be left out.

        Args:
            passes: Of the step.
            record: Of the pass that was run last.
            loss: Its loss.
            groups: How many gradients.
            without: Parameters that are to be left out, with the reasons.
        """
        with ExitStack() as passes_without:
            reasons = without or self._find_uncovered(record, loss)
            while reasons:
                if not self._skip:
                    self._refuse(record, reasons)
                loss = passes_without.enter_context(self._pass_without(reasons, passes, record))
                reasons = self._find_uncovered(record, loss)
            return loss, self._differentiate(passes, record, loss, groups)

    @contextmanager
    def _pass_without(self, reasons: Mapping[str, str], passes: Passes, record: Record) -> Iterator[Tensor]:
        """The recorded pass once more, with some parameters taken for constants from the beginning."""
        self._skipped.update(reasons)
        record.start_over(self._left_out(passes))
        with ExitStack() as stack:
            with record.open():
                point = stack.enter_context(passes.at())
            yield losses_of(point.output)

    def _differentiate(self, passes: Passes, record: Record, loss: Tensor, groups: int) -> ExampleGradients:
        """The gradients from one backward to the outputs of all uses."""
        with record:  # with gradient checkpointing the forward runs again in here
            total = loss.sum()
            record.graph = passes.check_autograd_graph(total).names
            by_output = passes.grad(total, record.outputs) if record.uses else []
        record.reached = tuple(b is not None for b in by_output)
        n = record.examples(loss)
        record.losses = loss.detach()
        record.is_coarse = record.computed_coarsely()
        record.behaviour = self._behaviour(record, n, n // groups)
        known = self._checked.behaviours.get(record.behaviour)
        thin = known.thin if known else None
        return ExampleGradients(record.uses, by_output, groups, thin, apart=record.outside_graph)

    def _behaviour(self, record: Record, n: int, m: int) -> Fingerprint:
        """Equal for passes that a check of one of them holds for: words and numbers, and no tensor of the pass."""
        training = tuple(module.training for module in record.structure.modules.values())
        return (
            record.fingerprint(n),
            n == m,
            m,
            self._checked.trained,
            frozenset(self._skipped),
            self._only.which,
            training,
        )

    def dry_run(self, passes: Passes, m: int = 1) -> ExampleGradients:
        """The gradients of a first pass after which everything is put back.

        Raises:
            NotCoveredError: They cannot be computed exactly; ``coverage`` says of which parameters.
            ValueError: m does not divide the number of examples.
        """
        try:
            with eager():
                output, record = self.first(passes)
                return self.gradients(passes, record, losses_of(output), m)
        finally:
            passes.rollback()

    def trainable_names(self) -> frozenset[str]:
        """The names of the parameters that are trained now."""
        return frozenset(name for name, p in self._model.named_parameters() if p.requires_grad)


def _message(reasons: Mapping[str, str]) -> str:
    """The reasons, each once with the names it holds for."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in names_by_reason.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  {', '.join(names[:_SHOWN])}{more}: {reason}")
    return "\n".join(("the gradients of single examples cannot be computed exactly:", *lines))
