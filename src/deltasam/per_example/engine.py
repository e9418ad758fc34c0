"""First passes that know every example's gradient, checked against autograd the first time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from deltasam import weight_space
from deltasam.compiled import as_written, is_compiled
from deltasam.graph import refuse_what_goes_wrong
from deltasam.outputs import losses_of
from deltasam.passes import Passes
from deltasam.per_example.check import (
    coupling_layers,
    meeting_uses,
    misplaced_uses,
    scattered_uses,
    several_rows_uses,
    uneven_uses,
    unexplained,
)
from deltasam.per_example.coverage import Coverage, coverage_of
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.record import NotCoveredError, Record
from deltasam.warn import warn

_SHOWN = 5


class Engine:
    """Per-example gradients of a model.

    On the first pass, and again when other parameters are trained, modules change between training and evaluation, or
    rows are laid out in another way, the record is checked: the gradients must add up to what autograd computes, and
    examples may not meet inside the model. That costs a few backward passes, once. A gradient that is 0 or not finite
    shows nothing, and the next pass is checked. What has no part in the first steps (a gate that begins at 0, a term
    of the loss that comes later) shows later: so the passes 10, 100, 1000, ... are checked as well.

    Args:
        model: The model.
        skip: Parameters that are not covered are taken for constants, instead of being an error.
        check: Whether anything is checked.
    """

    def __init__(self, model: nn.Module, *, skip: bool = False, check: bool = True) -> None:
        self.coverage: Coverage | None = None
        self._model, self._skip, self._check = model, skip, check
        self._skipped: dict[str, str] = {}
        self._checked: frozenset[str] = frozenset()
        self._layouts: set[frozenset[object]] = set()
        self._modes: list[bool] = []
        self._passes = 0
        self._said = False

    def as_written(self, method: str) -> AbstractContextManager[object]:
        """Around all passes of a step: compiled parts run as they were written; the first time, a warning says so.

        Args:
            method: The name of the method that asks, for the warning.
        """
        if not self._said and is_compiled(self._model):
            self._said = True
            warn(
                f"{method} runs the compiled model as it was written: compiled code does not show what becomes of each "
                f"example; to train at the speed of compiled code use SAM, ASAM or DeltaSAM(weights='slopes')"
            )
        return as_written()

    def state_dict(self) -> dict[str, Any]:
        """What the checks found, in JSON values: nothing if nothing was checked."""
        if not self._skipped:
            return {}
        return {"skipped": dict(self._skipped), "checked": sorted(self._checked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Treat the parameters from the first step as they were treated; others are still looked for."""
        self._skipped = dict(state.get("skipped", {}))
        self._checked = frozenset(state.get("checked", ()))
        self._modes = self._training()

    def first(self, passes: Passes) -> tuple[Any, Record]:
        """Run the first pass; returns what the closure returned, and the record of it."""
        self._passes += 1
        check = self._must_check()
        if check:
            self._skipped, self._checked, self._layouts = {}, frozenset(), set()
        record = Record(self._model, skip=self._skipped, verify=check)
        with record.open():
            output = passes.first()
        return output, record

    def gradients(self, passes: Passes, record: Record, loss: Tensor, m: int) -> ExampleGradients:
        """The gradient of every group of m consecutive examples.

        Args:
            passes: Whose first pass was recorded.
            record: Of it.
            loss: Its loss [], or one per example [n], of which the sum is taken. Its graph is used up.
            m: Divides the number of examples.

        Raises:
            NotCoveredError: The gradients cannot be had exactly. The graph of the loss is still there.
            ValueError: m does not divide the number of examples.
        """
        n = record.examples(loss)
        if n % m:
            raise ValueError(
                f"m={m} must divide the number of examples in the batch, which is {n}; drop the last, smaller batch, "
                f"train on a number of rows that m divides (--train-size), or use m=1"
            )
        with record:
            return self._gradients(passes, record, loss, n, m)

    def look(self, passes: Passes, m: int = 1) -> ExampleGradients:
        """The gradients of a first pass after which everything is put back.

        Raises:
            NotCoveredError: They cannot be had exactly; ``coverage`` says of which parameters.
            ValueError: m does not divide the number of examples.
        """
        try:
            with as_written():
                output, record = self.first(passes)
                return self.gradients(passes, record, losses_of(output), m)
        finally:
            passes.abandon()

    def _gradients(self, passes: Passes, record: Record, loss: Tensor, n: int, m: int) -> ExampleGradients:
        layout = record.layout(n)
        check, total = self._must_check() or (self._check and layout not in self._layouts), loss.sum()
        if check:
            refuse_what_goes_wrong(total)
        self._refuse(record, coupling_layers(self._model))
        self._leave_out(record, uneven_uses(record.uses, n, record.names) | record.refusals)
        if check and n > 1:
            self._check_apart(record, loss, n)
        by_output = passes.grad(total, record.outputs, retain_graph=check) if record.uses else []
        gradients = ExampleGradients(record.uses, by_output, n // m)
        if check and record.parameters:
            parameters = list(record.parameters.values())
            expected = passes.grad(total, parameters, retain_graph=True)
            if wrong := unexplained(record.parameters, expected, gradients.totals(parameters), record.uses):
                self._leave_out(record, wrong)
                return self._gradients(passes, record, loss, n, m)
            # One example alone cannot meet another, and a gradient of 0 or infinity is no proof.
            if n > 1 and 0 < weight_space.norm(expected) < math.inf:
                self._checked, self._modes = self.trained(), self._training()
                self._layouts.add(layout)
        if check:
            self.coverage = coverage_of(self._model, record.uses, record.names, self._skipped)
        return gradients

    def _check_apart(self, record: Record, loss: Tensor, n: int) -> None:
        """Examples may meet in the loss, but not in the model."""
        doubtful = (scattered_uses if loss.ndim else several_rows_uses)(loss, record.uses, n)
        if loss.ndim and not doubtful:
            return  # each loss is of its own example alone
        self._refuse(record, meeting_uses(record.uses, n, record.names))
        self._refuse(record, misplaced_uses(record.uses, record.rows(n), n, record.names, doubtful))

    def trained(self) -> frozenset[str]:
        """The names of the parameters that are trained now."""
        return frozenset(name for name, p in self._model.named_parameters() if p.requires_grad)

    def _training(self) -> list[bool]:
        return [module.training for module in self._model.modules()]

    def _must_check(self) -> bool:
        again = str(self._passes).strip("0") == "1" and self._passes > 1  # 10, 100, 1000, ...
        return self._check and (again or self.trained() != self._checked or self._training() != self._modes)

    def _leave_out(self, record: Record, reasons: Mapping[str, str]) -> None:
        if not reasons:
            return
        if not self._skip:
            self._refuse(record, reasons)
        self._skipped.update(reasons)
        record.leave_out(reasons)

    def _refuse(self, record: Record, reasons: Mapping[str, str]) -> None:
        if reasons:
            self.coverage = coverage_of(self._model, record.uses, record.names, {**self._skipped, **reasons})
            raise NotCoveredError(_message(reasons))


def _message(reasons: Mapping[str, str]) -> str:
    """The reasons, each once with the names it holds for."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in names_by_reason.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  {', '.join(names[:_SHOWN])}{more}: {reason}")
    return "\n".join(("the gradients of single examples cannot be had exactly:", *lines))
