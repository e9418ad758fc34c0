"""The base class of tasks: a model, the loss of training rows, and the evaluation metrics."""

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
    """Refuse options that have no meaning for some data.

    Raises:
        UserError: One of them is given; the message names it.
    """
    for option in options:
        if getattr(config, option):
            raise UserError(f"{name}: --{option.replace('_', '-')} has no meaning for it; leave it out")


class Task(abc.ABC):
    """A model with training rows and evaluation rows.

    All randomness (the head, a masked span) comes from the global random state, so that passes replay it.

    Attributes:
        model: The model, on its device.
        tokenizer: The model's tokenizer; saved with it.
        classes: The class names; empty if it predicts no class.
        one_class: The majority class of the evaluation rows, and its accuracy; None if it predicts no class.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    classes: tuple[str, ...] = ()
    one_class: OneClass | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of training rows."""

    def prepare(self) -> None:  # noqa: B027
        """Do what takes long and is needed from the first step on; nothing random is drawn."""

    @abc.abstractmethod
    def output(self, rows: list[int]) -> Output:
        """One forward on some training rows, counted from 0: one loss per row [rows], whose mean is the batch's."""

    def prefetch(self, rows: list[int]) -> None:  # noqa: B027
        """Prepare these training rows, which come next, while an accelerator computes; nothing random is drawn."""

    def predictions(self, output: Output) -> Tensor | None:
        """The model's predictions for the rows of an output: classes [rows], as integers, or scores [rows].

        None, unless overridden: there is no single prediction per row.
        """
        return None

    def all_layers(self) -> AbstractContextManager[None]:
        """Context in which every layer computes, including those with cached outputs: their weights may change."""
        return nullcontext()

    @abc.abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Every metric on the evaluation rows, including ``loss``; all NaN if the model's outputs are not finite.

        The model is left in the mode, training or evaluation, it was in. Several processes share the work.
        """


@singledispatch
def make_task(data: Data, config: TrainConfig, device: str) -> Task:
    """Create the task for some data, with its model drawn from the global random state.

    Register a task for a kind of data with ``make_task.register(MyData, MyTask)``.

    Raises:
        UserError: The model cannot be loaded, or does not match the configuration.
    """
    raise NotImplementedError(f"there is no task for {type(data).__name__}")
