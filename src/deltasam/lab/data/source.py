"""The base class of data sources: a source turns the argument of ``--data`` into training and evaluation rows."""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass
from typing import ClassVar

from deltasam.errors import UserError
from deltasam.lab.data.dataset import TextData


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading data, in addition to its location.

    Attributes:
        text: The column with the text; None: determined by the source.
        text_pair: The column with the second text, for pairs.
        label: The column with the label; None: determined by the source.
        eval_data: A second file, with the evaluation rows.
        eval_size: How many rows to hold out for evaluation if the source has no evaluation rows: a fraction below 1, or
            a number of rows.
        task: ``classification`` or ``regression``.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    eval_data: str | os.PathLike[str] | None = None
    eval_size: float = 0.2
    task: str = "classification"

    @property
    def columns(self) -> tuple[str | None, str | None, str | None]:
        """The given columns of text, text pair and label."""
        return self.text, self.text_pair, self.label

    def refuse(self, name: str, *options: str) -> None:
        """Refuse options that would have no effect.

        Args:
            name: The argument of ``--data``.
            *options: Names of attributes.

        Raises:
            UserError: One of them was given; the message names it.
        """
        for option in options:
            if getattr(self, option) is not None:
                raise UserError(f"{name}: --{option.replace('_', '-')} has no meaning for it; leave it out")


class DataSource(abc.ABC):
    """One kind of source. Subclass it with a name; a subclass in ``sources/`` or in a plugin is found automatically.

    Of several that recognise the argument, the one defined last reads it, so a plugin takes precedence.
    """

    registry: ClassVar[dict[str, DataSource]] = {}
    fallback: ClassVar[bool] = False
    """Whether it is tried only if no other source recognises the argument."""

    def __init_subclass__(cls, *, name: str) -> None:
        DataSource.registry[name] = cls()

    @abc.abstractmethod
    def recognizes(self, name: str) -> bool:
        """Whether this source reads the given argument of ``--data``."""

    @abc.abstractmethod
    def load(self, name: str, options: ReadOptions) -> TextData:
        """Read the data, check every row, and split it into training and evaluation.

        Raises:
            UserError: Something cannot be used; the message says what, where and what to do.
        """
