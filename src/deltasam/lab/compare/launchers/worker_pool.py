"""Several runs at a time, each in a process of its own on this machine."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from deltasam.lab.compare.launchers.launcher import ProgressCallback, RunFn, RunKey
from deltasam.lab.compare.launchers.worker import CrashCounter, Done, Failed, Warned, do_apart
from deltasam.lab.train.kept_states import shared_in

if TYPE_CHECKING:
    from deltasam.lab.train.results import RunResult

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's locks and threads in mid-work
_LAST_BREATH = 10.0  # seconds that a process may take from closing its pipe to its end


class WorkerPool:
    """Worker processes that do one run after the other.

    A worker that dies takes nothing but its own run along: that is begun again in a new process, from its checkpoint
    where there is one.

    Args:
        workers: Runs at a time.
    """

    shares_disk: ClassVar[bool] = True

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def launch(self, work: RunFn, keys: Sequence[RunKey], watch: ProgressCallback) -> Generator[RunResult]:
        """Do the runs; no process is left when this ends, however it ends."""
        waiting, crashes, warned = deque(keys), CrashCounter(), set[Warned]()
        idle: list[_Worker] = []
        at_work: dict[Connection, _Worker] = {}
        shared = Path(tempfile.mkdtemp(prefix="deltasam-"))
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self._workers:
                    worker = idle.pop() if idle else _Worker(work, self._threads(), shared)
                    at_work[worker.begin(waiting.popleft())] = worker
                for pipe in wait(list(at_work)):
                    worker = at_work[pipe]  # type: ignore[index]
                    message = worker.receive()
                    if message is None:
                        waiting.appendleft(at_work.pop(worker.pipe).key)
                        crashes.note(worker.key, worker.cause_of_death())
                    elif isinstance(message, Done | Failed):
                        idle.append(at_work.pop(worker.pipe))
                        yield message.unpack(warned)
                    else:
                        watch(message)
        finally:
            for worker in (*idle, *at_work.values()):
                worker.kill()
            shutil.rmtree(shared, ignore_errors=True)

    def _threads(self) -> int:
        """Threads of a worker: its share of those of a single run, unless the user has chosen a number."""
        threads = torch.get_num_threads()
        return threads if "OMP_NUM_THREADS" in os.environ else max(1, threads // self._workers)


class _Worker:
    """A process, the pipe to it, and its current run."""

    def __init__(self, work: RunFn, threads: int, shared: Path) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.key: RunKey
        # A daemon: even if this process ends in an unforeseen way, multiprocessing ends it on the way out.
        self._process = _SPAWN.Process(target=_serve, args=(theirs, work, threads, shared), daemon=True)
        with _ctrl_c_waits():
            self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def begin(self, key: RunKey) -> Connection:
        """Start a run; what it sends comes out of the pipe."""
        self.key = key
        with suppress(BrokenPipeError):  # it died while it was idle: reading will show
            self.pipe.send(key)
        return self.pipe

    def receive(self) -> Any:
        """A progress report, or the outcome of the run; None: the process is gone."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def cause_of_death(self) -> str:
        """What ended the process, which is gone or about to be."""
        self._process.join(_LAST_BREATH)
        self.kill()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(pipe: Connection, work: RunFn, threads: int, shared: Path) -> None:
    """The life of a worker: runs until the other end of the pipe is closed, or its process is gone."""
    with suppress(EOFError, BrokenPipeError), shared_in(shared):
        while True:
            pipe.send(do_apart(work, pipe.recv(), pipe.send, threads))
    shutil.rmtree(shared, ignore_errors=True)  # it was killed, or it would have done so


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold SIGINT back. A process that is started inside never gets it: this one will end it.

    Ctrl-C goes to every process of a terminal, and each would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # when it is started it lets SIGINT through
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
