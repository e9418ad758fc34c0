"""A run in another process: how results and errors are sent back, and what happens when the process dies."""

from __future__ import annotations

import copy
import pickle
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from deltasam.errors import UserError
from deltasam.lab.compare.launchers.launcher import ProgressCallback, RunFn, RunKey, run_name
from deltasam.lab.train.plugins import load_plugins

if TYPE_CHECKING:
    from deltasam.lab.train.results import RunResult

_ATTEMPTS = 3

Warned = tuple[str, type[Warning], str, int]
"""Text, category, file and line of a warning."""


@dataclass(frozen=True)
class Done:
    """What a worker sends back at the end of a run.

    Attributes:
        result: Of the run.
        warnings: Given on the way.
    """

    result: RunResult
    warnings: list[Warned]

    def unpack(self, seen: set[Warned]) -> RunResult:
        """The result; what the worker warned of is warned of here.

        Args:
            seen: Remembers the warnings of other runs, so that each is shown once.
        """
        for warning in self.warnings:
            if warning not in seen:
                seen.add(warning)
                warnings.warn_explicit(*warning)
        return self.result


@dataclass(frozen=True)
class Failed:
    """What a worker sends back when an error stopped the run.

    Attributes:
        error: The error.
        trace: Where it was raised, as text.
    """

    error: Exception
    trace: str

    def unpack(self, seen: set[Warned]) -> RunResult:
        """Raise the error here."""
        raise self.error from RuntimeError(f"in the worker:\n{self.trace}")


def do_apart(work: RunFn, key: RunKey, watch: ProgressCallback, threads: int) -> Done | Failed:
    """Do a run in a worker; an error that stops it is sent back too.

    Args:
        work: What to do.
        key: For which run.
        watch: Told after each step.
        threads: Of PyTorch. Sums depend on it in their last bits, so it is always set.
    """
    torch.set_num_threads(threads)
    with warnings.catch_warnings(record=True) as given:
        try:
            load_plugins()
            result = work(key, watch)
        except Exception as error:  # noqa: BLE001  # raised again by whoever asked for the run
            return Failed(_portable(error), traceback.format_exc())
    return Done(result, [(str(w.message), w.category, w.filename, w.lineno) for w in given])


class CrashCounter:
    """Counts the crashes of each run's workers, so that a run which kills its worker is not restarted for ever."""

    def __init__(self) -> None:
        self._lost: Counter[RunKey] = Counter()

    def note(self, key: RunKey, reason: str) -> None:
        """A worker died in the middle of a run.

        Raises:
            UserError: It happened to this run too often.
        """
        self._lost[key] += 1
        name = run_name(key)
        if self._lost[key] >= _ATTEMPTS:
            raise UserError(
                f"{name}: the process at work on it died {_ATTEMPTS} times ({reason}); if memory ran out, use fewer "
                f"--workers or a smaller --batch-size; what is finished is kept, the same command goes on"
            )
        warnings.warn(f"{name}: the process at work on it died ({reason}); it is done again", RuntimeWarning, 3)


def _portable(error: Exception) -> Exception:
    """The error if it can be sent and made again elsewhere, else one that says the same."""
    try:
        pickle.dumps(error)
        copy.deepcopy(error)
    except (pickle.PicklingError, AttributeError, TypeError):
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
