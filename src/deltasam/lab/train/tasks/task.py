"""What a run trains: a model, the loss of some of its training rows, and the metrics of the model."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager, nullcontext
from functools import singledispatch
from typing import TYPE_CHECKING

from deltasam.core.closure import Output
from deltasam.errors import UserError
from deltasam.lab.data.dataset import Data
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.majority_class import OneClass

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def refuse_options(name: str, config: TrainConfig, *options: str) -> None:
    """Check that options without a meaning for some data are not given.

    Raises:
        UserError: One is; names it.
    """
    for option in options:
        if getattr(config, option):
            raise UserError(f"{name}: --{option.replace('_', '-')} has no meaning for it; leave it out")


class Task(abc.ABC):
    """A model with training rows to learn from and evaluation rows to be measured on.

    Everything random (the head, a masked span) comes from the global random state, so that passes replay it.

    Attributes:
        model: On its device.
        tokenizer: What was used for it; saved with the model.
        classes: The names of what it tells apart; empty where it predicts no class.
        one_class: What one of them for every evaluation row reaches; None where it predicts no class.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    classes: tuple[str, ...] = ()
    one_class: OneClass | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Training rows."""

    @abc.abstractmethod
    def output(self, rows: list[int]) -> Output:
        """One forward on some training rows, counted from 0: one loss per row [rows], whose mean is the batch's."""

    def prefetch(self, rows: list[int]) -> None:  # noqa: B027
        """Prepare these training rows, which come next, while an accelerator computes; nothing random is drawn."""

    def predictions(self, output: Output) -> Tensor | None:
        """What the model takes the rows of an output for: classes [rows], as integers, or scores [rows].

        None, unless overridden: there is no one answer per row.
        """
        return None

    def all_layers(self) -> AbstractContextManager[None]:
        """Meanwhile every layer computes, also those whose outputs are kept: their weights are about to change."""
        return nullcontext()

    @abc.abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Every metric on the evaluation rows, ``loss`` among them; all NaN when the model's outputs are not finite.

        The model is left in the mode, training or evaluation, in which it came. Several processes share the work.
        """


@singledispatch
def make_task(data: Data, config: TrainConfig, device: str) -> Task:
    """The task of data, with its model drawn from the global random state: ``make_task.register(MyData, MyTask)``.

    Raises:
        UserError: The model cannot be loaded, or does not fit the configuration.
    """
    raise NotImplementedError(f"there is no task for {type(data).__name__}")
