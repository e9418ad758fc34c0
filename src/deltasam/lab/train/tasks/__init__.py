"""What can be trained: one file for each kind of data."""

from __future__ import annotations

from functools import singledispatch

from deltasam.lab.data.dataset import Data, TextData
from deltasam.lab.data.sentences import SentenceData
from deltasam.lab.data.summarization import SummaryData
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.tasks.sentences import SentenceTask
from deltasam.lab.train.tasks.summaries import SummaryTask
from deltasam.lab.train.tasks.task import Task
from deltasam.lab.train.tasks.text import TextTask

__all__ = ["Task", "make_task"]


@singledispatch
def make_task(data: Data, config: TrainConfig, device: str) -> Task:
    """The task of data, with its model drawn from the global random state.

    Raises:
        UserError: The model cannot be had or does not fit the configuration.
    """
    raise NotImplementedError(f"there is no task for {type(data).__name__}")


make_task.register(TextData, TextTask)
make_task.register(SentenceData, SentenceTask)
make_task.register(SummaryData, SummaryTask)
