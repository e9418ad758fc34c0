"""Runs spread over the machines of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from deltasam.errors import UserError
from deltasam.lab.compare.launchers.launcher import ProgressCallback, RunFn, RunKey, RunProgress, run_name
from deltasam.lab.compare.launchers.worker import CrashCounter, Done, Failed, Warned, do_apart
from deltasam.lab.train import plugins

if TYPE_CHECKING:
    from deltasam.lab.train.results import RunResult

try:
    import ray
except ModuleNotFoundError as error:
    if error.name != "ray":
        raise
    raise UserError("--launcher ray needs the library 'ray'; pip install 'deltasam[ray]'") from error

_POLL_SECONDS = 0.5


class RayCluster:
    """One task of the cluster per run; which machine does it is for Ray to choose.

    The cluster is the one that ``RAY_ADDRESS`` names or that runs on this machine, else one is started here and ended
    with the runs. A run takes a CPU (as many as ``OMP_NUM_THREADS`` says), and a GPU if runs are to have one. It begins
    anew when its worker is lost: the machines need not share a disk, so there are no checkpoints.

    Args:
        workers: Most runs at a time; None: as many as the cluster has room for.
        gpu: Whether each run takes a GPU.
    """

    shares_disk: ClassVar[bool] = False

    def __init__(self, workers: int | None, *, gpu: bool) -> None:
        self._workers, self._gpu = workers, gpu

    def launch(self, work: RunFn, keys: Sequence[RunKey], watch: ProgressCallback) -> Generator[RunResult]:
        """Do the runs; no task is left when this ends, however it ends."""
        waiting, crashes, warned = deque(keys), CrashCounter(), set[Warned]()
        at_work: dict[Any, RunKey] = {}
        with _connection():
            board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Board).remote()
            begin = self._task(work)
            try:
                while waiting or at_work:
                    while waiting and (self._workers is None or len(at_work) < self._workers):
                        key = waiting.popleft()
                        at_work[begin(key, board)] = key
                    ended, _ = ray.wait(list(at_work), timeout=_POLL_SECONDS)
                    for progress in ray.get(board.take.remote()):
                        watch(progress)
                    for task in ended:
                        key = at_work.pop(task)
                        try:
                            outcome = _outcome(task, key)
                        except ray.exceptions.RayError as error:
                            crashes.note(key, type(error).__name__)
                            waiting.appendleft(key)
                        else:
                            yield outcome.unpack(warned)
            finally:
                for task in at_work:
                    ray.cancel(task, force=True)
                ray.kill(board)

    def _task(self, work: RunFn) -> Any:
        threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1
        task = ray.remote(num_cpus=threads, num_gpus=int(self._gpu), max_retries=0)(_do)
        shared = ray.put(work)  # once, not with every run: it holds the data
        return lambda key, board: task.remote(shared, key, board, threads)


class _Board:
    """Where runs on all machines note how far they are."""

    def __init__(self) -> None:
        self._news: dict[RunKey, RunProgress] = {}

    def note(self, progress: RunProgress) -> None:
        self._news[progress.key] = progress

    def take(self) -> list[RunProgress]:
        """What is new."""
        news, self._news = list(self._news.values()), {}
        return news


def _do(work: RunFn, key: RunKey, board: Any, threads: int) -> Done | Failed:
    last: deque[Any] = deque(maxlen=1)
    outcome = do_apart(work, key, lambda progress: last.append(board.note.remote(progress)), threads)
    ray.get(list(last))  # notes arrive in order: once the run has ended, the board knows all of it
    return outcome


def _outcome(task: object, key: RunKey) -> Done | Failed:
    """What came back of a run.

    Raises:
        RayError: The worker was lost.
        UserError: The machine cannot do it at all: what a run itself raises comes back as an outcome.
    """
    try:
        outcome: Done | Failed = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{run_name(key)} could not begin on a machine of the Ray cluster ({reason}); "
            f"install the same deltasam[cli] on all of them"
        ) from error
    return outcome


@contextmanager
def _connection() -> Iterator[None]:
    """A connection to the cluster for as long as it is needed, unless there is one already."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, Ray warns of it
    variables = {plugins.VARIABLE: os.environ[plugins.VARIABLE]} if plugins.VARIABLE in os.environ else {}
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "include_dashboard": False}
    try:
        ray.init(**quiet, runtime_env={"env_vars": variables})
    except ConnectionError as error:
        raise UserError(f"--launcher ray: cannot reach the Ray cluster: {error}; check RAY_ADDRESS") from error
    try:
        yield
    finally:
        ray.shutdown()
