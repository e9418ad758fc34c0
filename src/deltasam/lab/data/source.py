"""What a data source is: something that turns the text after ``--data`` into training and evaluation rows."""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass
from typing import ClassVar

from deltasam.errors import UserError
from deltasam.lab.data.dataset import TextData


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about the data, beside where it is.

    Attributes:
        text: The column with the text; None: the source finds it.
        text_pair: The column with the second text, for pairs.
        label: The column with the label; None: the source finds it.
        eval_data: A second file, with the evaluation rows.
        eval_size: How much to split off for evaluation where the source has no evaluation rows: a fraction below 1, or
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
        """Text, text pair and label, as they were named."""
        return self.text, self.text_pair, self.label

    def refuse(self, name: str, *options: str) -> None:
        """Stop at options that would have no effect.

        Args:
            name: What was given as ``--data``.
            *options: Names of attributes.

        Raises:
            UserError: One of them was given; names it.
        """
        for option in options:
            if getattr(self, option) is not None:
                raise UserError(f"{name}: --{option.replace('_', '-')} has no meaning for it; leave it out")


class DataSource(abc.ABC):
    """One kind of source. Subclass with a name; a subclass in ``sources/`` or in a plugin is found by itself.

    The last one defined that recognises the text reads it, so a plugin comes before what the library has.
    """

    registry: ClassVar[dict[str, DataSource]] = {}
    fallback: ClassVar[bool] = False
    """Whether it is asked only when no other source recognises the text."""

    def __init_subclass__(cls, *, name: str) -> None:
        DataSource.registry[name] = cls()

    @abc.abstractmethod
    def recognizes(self, name: str) -> bool:
        """Whether this source reads what was given as ``--data``."""

    @abc.abstractmethod
    def load(self, name: str, options: ReadOptions) -> TextData:
        """Read it, check every row, and split it into training and evaluation.

        Raises:
            UserError: Something cannot be used; the message says what, where and what to do.
        """
