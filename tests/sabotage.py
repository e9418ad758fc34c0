"""Work that goes wrong on purpose, in a module of its own so that other processes can import it."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from deltasam.errors import UserError
from deltasam.lab.compare.launchers import Launcher, ProgressCallback, RunKey, RunProgress
from deltasam.lab.train.results import RunResult

Sabotage = Callable[[RunProgress], None]


@dataclass(frozen=True)
class Sabotaged:
    """A launcher whose workers do something unforeseen after each step, and which itself runs as always."""

    launcher: Launcher
    sabotage: Sabotage
    shares_disk: ClassVar[bool]

    def __getattr__(self, name: str) -> bool:
        return getattr(self.launcher, name)

    def launch(
        self, work: Callable[[RunKey, ProgressCallback], RunResult], keys: Sequence[RunKey], watch: ProgressCallback
    ) -> Generator[RunResult]:
        return self.launcher.launch(partial(_work, work, self.sabotage), keys, watch)


def _work(
    work: Callable[[RunKey, ProgressCallback], RunResult], sabotage: Sabotage, key: RunKey, watch: ProgressCallback
) -> RunResult:
    def told(progress: RunProgress) -> None:
        watch(progress)
        sabotage(progress)

    return work(key, told)


@dataclass(frozen=True)
class Killed:
    """``kill -9`` of the worker of one run, at one step, so many times."""

    key: RunKey
    step: int
    times: int
    marks: Path

    def __call__(self, progress: RunProgress) -> None:
        done = len(list(self.marks.iterdir()))
        if (progress.key, progress.steps) == (self.key, self.step) and done < self.times:
            (self.marks / str(done)).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class UnpicklableError(Exception):
    """Cannot be made again from its message alone."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)


def short_work(key: RunKey, watch: ProgressCallback) -> RunResult:
    """No training: only what a launcher has to do with it. The method's name says what happens."""
    seed, method, _ = key
    for step in range(3):
        watch(RunProgress(key, step, 2, None, step == 2))
    if method == "warns":
        warnings.warn("mind the step", RuntimeWarning, stacklevel=1)
    if method == "refuses":
        raise UserError("the file is missing; give another")
    if method == "fails":
        raise ZeroDivisionError("a defect")
    if method == "fails badly":
        raise UnpicklableError("no way back", 3)
    facts = {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES") or -1,
    }
    return RunResult(method, seed, "pid", {name: float(value) for name, value in facts.items()}, 0.1, None)


class NotHere:
    """Work that another machine cannot unpack, as when its library is missing there."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _missing, ()

    def __call__(self, key: RunKey, watch: ProgressCallback) -> RunResult:
        raise NotImplementedError


def _missing() -> None:
    raise ModuleNotFoundError("No module named 'deltasam'")
