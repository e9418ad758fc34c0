"""Schedules of the radius: small objects whose factors on the radius are multiplied.

In a spec they follow the method: ``sam:rho=0.05@warmup=100@every=2``. Where the factor is 0 the step is plain training,
at the cost of plain training.
"""

from __future__ import annotations

import abc
import inspect
import math
from typing import ClassVar


class Schedule(abc.ABC):
    """A factor on the radius that depends on the optimizer step.

    Subclass it with a name; its number is given in the spec: ``class Every(Schedule, name="every")`` is written
    ``@every=2``. Further numbers are keyword-only arguments stored under their own names: ``@last=0.3,ramp=0.02``.
    """

    registry: ClassVar[dict[str, type[Schedule]]] = {}
    name: ClassVar[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Schedule.registry[name] = cls

    def __init__(self, value: float) -> None:
        self.value = float(value)
        if not self._valid(self.value):
            raise ValueError(f"{self}: must be {self.expected}")

    expected: ClassVar[str]
    """Description of the valid values, for error messages."""

    @abc.abstractmethod
    def _valid(self, value: float) -> bool:
        """Whether the value is valid."""

    @property
    def needs_total(self) -> bool:
        """Whether it depends on the total number of steps."""
        return True

    @abc.abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The factor, from 0 to 1.

        Args:
            step: Number of optimizer steps taken so far.
            total: Total number of steps; 0 if not ``needs_total``.
        """

    def __str__(self) -> str:
        given = inspect.signature(type(self)).parameters.values()
        further = {p.name: getattr(self, p.name) for p in given if p.kind is p.KEYWORD_ONLY}
        numbers = {self.name: self.value, **{k: v for k, v in further.items() if v}}
        # Every digit, so that the spec makes it again.
        return "@" + ",".join(f"{key}={str(value).removesuffix('.0')}" for key, value in numbers.items())


class Warmup(Schedule, name="warmup"):
    """The radius rises linearly over the first steps, and is constant after them."""

    expected = "a number of steps, or a fraction of all steps below 1"

    def _valid(self, value: float) -> bool:
        return value > 0 and (value < 1 or value.is_integer())

    @property
    def needs_total(self) -> bool:
        """Whether the warmup is a fraction of all steps."""
        return self.value < 1

    def factor(self, step: int, total: int) -> float:
        """``step / warmup``, at most 1: the very first step is plain training."""
        return min(1.0, step / (self.value * total if self.needs_total else self.value))


class Decay(Schedule, name="decay"):
    """The radius falls linearly, to this fraction of itself after the last step."""

    expected = "the fraction of the radius that is left at the end, at least 0 and below 1"

    def _valid(self, value: float) -> bool:
        return 0 <= value < 1

    def factor(self, step: int, total: int) -> float:
        """Falls from 1 at the first step to the value."""
        return 1 - (1 - self.value) * min(1.0, step / total)


class Every(Schedule, name="every"):
    """Only every k-th step is perturbed, starting with the first; the others cost as much as plain training."""

    expected = "a whole number of steps, 1 or more"

    def _valid(self, value: float) -> bool:
        return value >= 1 and value.is_integer()

    @property
    def needs_total(self) -> bool:
        """No."""
        return False

    def factor(self, step: int, total: int) -> float:
        """1 at steps 0, k, 2k, ..., else 0."""
        return float(step % self.value == 0)


class Last(Schedule, name="last"):
    """Only the last part of training is perturbed, while the learning rate anneals.

    Reported to keep most of the gain of SAM at a fraction of the cost: Zhou et al., "Sharpness-Aware Minimization
    Efficiently Selects Flatter Minima Late in Training", ICLR 2025 (arXiv 2410.10373).
    """

    expected = "a fraction of all steps, above 0 and at most 1, and a ramp that is no longer"

    def __init__(self, value: float, *, ramp: float = 0.0) -> None:
        self.ramp = float(ramp)
        super().__init__(value)

    def _valid(self, value: float) -> bool:
        return 0 <= self.ramp <= value and 0 < value <= 1

    def factor(self, step: int, total: int) -> float:
        """1 in the last steps, 0 before them; with a ramp it rises linearly over this fraction of all steps."""
        since = step - (total - round(self.value * total))  # the first perturbed step is number 0
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / (self.ramp * total)) if self.ramp else 1.0


class Cosine(Schedule, name="cosine"):
    """The radius rises as ``(1 - cos) / 2`` over this fraction of all steps, and is constant after them.

    The schedule of Flat-LoRA (Li et al., ICML 2025, arXiv 2409.14396), there over all of training: ``@cosine=1``.
    """

    expected = "a fraction of all steps, above 0 and at most 1"

    def _valid(self, value: float) -> bool:
        return 0 < value <= 1

    def factor(self, step: int, total: int) -> float:
        """Rises from 0 at the first step, which is plain training, to 1."""
        return (1 - math.cos(math.pi * min(1.0, step / (self.value * total)))) / 2
