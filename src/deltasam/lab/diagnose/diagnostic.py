"""What a diagnostic is: a measure, its main numbers, its pictures and its words."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from deltasam.lab.diagnose.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

R = TypeVar("R")


class NotMeasuredError(Exception):
    """A diagnostic has no meaning for this model or data; the message says why."""


@dataclass(frozen=True)
class Number:
    """A main number.

    Attributes:
        value: NaN where it is undefined.
        error: Its standard error, or another uncertainty that ``note`` names; None where there is none.
        note: What qualifies it, in a few words.
    """

    value: float
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture of some results.

    Attributes:
        name: Of its file.
        alt: What it shows, for those who do not see it.
        draw: Draws it.
    """

    name: str
    alt: str
    draw: Callable[[Axes], Any]


def one_each(name: str, alt: str, results: Mapping[str, R], draw: Callable[[R, Axes], Any]) -> list[Plot]:
    """A picture for each result, where one holds no more than one.

    Args:
        name: Of the file; numbered where there are several.
        alt: What it shows, before the name of the checkpoint.
        results: By checkpoint.
        draw: Draws one.
    """
    return [
        Plot(name if len(results) == 1 else f"{name}-{number}", f"{alt}: {checkpoint}", partial(draw, result))
        for number, (checkpoint, result) in enumerate(results.items(), 1)
    ]


class Diagnostic(abc.ABC, Generic[R]):
    """One diagnostic. Subclass with a name; the registry makes the options, the table and the page.

    Attributes:
        name: As it is written on the command line.
        title: As it is written on the page.
        share: Of the examples it is measured on: below 1 for what is expensive.
        order: Those with a smaller one run first; among equals by name.
    """

    registry: ClassVar[dict[str, Diagnostic[Any]]] = {}
    name: ClassVar[str]
    title: ClassVar[str]
    share: ClassVar[float] = 1.0
    order: ClassVar[int] = 100

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Diagnostic.registry[name] = cls()

    def groups(self, subjects: Sequence[Subject]) -> dict[str, tuple[Subject, ...]]:
        """What is measured together, by name: each checkpoint by itself, unless this says otherwise.

        Raises:
            NotMeasuredError: It does not apply: it takes more checkpoints than there are, say.
        """
        return {subject.name: (subject,) for subject in subjects}

    @abc.abstractmethod
    def measure(self, *subjects: Subject) -> R:
        """Measure one group.

        Raises:
            NotMeasuredError: It has no meaning for this model or data.
        """

    @abc.abstractmethod
    def numbers(self, result: R) -> dict[str, Number]:
        """The main numbers, by what they are called in tables."""

    @abc.abstractmethod
    def answer(self, result: R) -> str:
        """The main number in one sentence, without the name of the checkpoint."""

    def reading(self, result: R) -> str:
        """What the numbers say, and what they do not: as the result puts it, unless this says otherwise."""
        words: str = result.reading  # type: ignore[attr-defined]
        return words

    @abc.abstractmethod
    def plots(self, results: Mapping[str, R]) -> list[Plot]:
        """Pictures of all that was measured."""
