"""A method whose radius follows schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from deltasam.core.passes import Passes
from deltasam.method import Method, Step
from deltasam.methods.erm import ERM
from deltasam.schedules import Schedule


class Scheduled(Method):
    """A method whose radius is multiplied by the factors of schedules; plain training where the product is 0.

    Optimizer steps are counted, so gradient accumulation and skipped steps are handled: call ``follow(optimizer)`` once
    before training.

    Args:
        method: The method; those of its hyper-parameters that are 0 in plain training (rho) are scaled.
        schedules: The schedules; their factors are multiplied.
    """

    def __init__(self, method: Method, schedules: Sequence[Schedule]) -> None:
        super().__init__(method.model)
        if not method.neutral:
            raise ValueError(f"{method.spec} has no radius, so it can have no schedule")
        self.method, self.schedules = method, tuple(schedules)
        self.name = method.name
        self._store, self._plain = method._store, ERM(method.model)
        self._steps, self._total = 0, 0

    def follow(self, optimizer: torch.optim.Optimizer, *, total_steps: int | None = None) -> None:
        """Count the steps of an optimizer from now on, starting at 0.

        Raises:
            ValueError: A schedule depends on ``total_steps``, which is missing.
        """
        needing = [str(s) for s in self.schedules if s.needs_total]
        if needing and not total_steps:
            raise ValueError(
                f"{self.spec}: {needing[0]} is a fraction of all steps; call follow(optimizer, total_steps=...)"
            )
        self._steps, self._total = 0, total_steps or 0
        self.after_each_step(optimizer, self._count)
        self.method.follow(optimizer, total_steps=total_steps)

    def training_ended(self) -> None:
        """Warn if no step was perturbed: the schedule has waited for steps that did not come."""
        if self._steps and not any(self._factor_at(step) for step in range(self._steps)):
            total = f" (follow() was told {self._total})" if self._total else ""
            self.warn_once(
                f"{self.spec}: training has ended after {self._steps} steps{total}, and the schedule let none of them "
                f"be perturbed: this was plain training; check total_steps, or let the schedule begin earlier"
            )
        self.method.training_ended()

    def factor(self) -> float:
        """The factor on the radius at this step."""
        return self._factor_at(self._steps)

    def _factor_at(self, step: int) -> float:
        return math.prod(s.factor(step, self._total) for s in self.schedules)

    @property
    def needs_all_micro_batches(self) -> bool:
        """As the method."""
        return self.method.needs_all_micro_batches

    @property
    def per_example(self) -> bool:
        """As the method."""
        return self.method.per_example

    @property
    def compares_predictions(self) -> bool:
        """As the method."""
        return self.method.compares_predictions

    @property
    def loss_is_perturbed(self) -> bool:
        """As the method."""
        return self.method.loss_is_perturbed

    @property
    def fresh_dropout(self) -> bool:
        """As the method."""
        return self.method.fresh_dropout

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far, and the method's state."""
        return {"steps": self._steps, "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; call it after ``follow``, which starts at 0.

        Raises:
            ValueError: The state was saved without a schedule, or by another method.
        """
        self.check_state(state, ("steps", "method"))
        self.method.load_state_dict(state["method"])
        self._steps = state["steps"]

    @property
    def spec(self) -> str:
        """The method's spec followed by its schedules: ``sam:rho=0.05@every=2``."""
        return self.method.spec + "".join(map(str, self.schedules))

    def _count(self, *_: object) -> None:
        self._steps += 1
        if self._steps == self._total:
            self.training_ended()

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        if self._following is None:
            raise RuntimeError(
                f"{self.spec}: a schedule counts the steps of the optimizer; call "
                f"method.follow(optimizer, total_steps=...) once before training"
            )
        factor = self.factor()
        if factor == 0:
            return super().fill_step(micro_batches)
        with self._scaled(factor):
            return self.method.fill_step(micro_batches)

    def fill(self, passes: Passes) -> Step:
        return self._plain.fill(passes)

    @contextmanager
    def _scaled(self, factor: float) -> Iterator[None]:
        whole = {key: getattr(self.method, key) for key, neutral in self.method.neutral.items() if neutral == 0}
        try:
            for key, value in whole.items():
                setattr(self.method, key, factor * value)
            yield
        finally:
            for key, value in whole.items():
                setattr(self.method, key, value)
