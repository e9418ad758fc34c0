"""Processes of their own that need not import the heavy libraries again.

They are forked from a server that has imported them, and import the package themselves. For tests that need a process,
to kill it or since what they do stays in it, and not the start of the interpreter.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Nothing of the package, which may be another one; and nothing that starts a thread, as a fork would be without it.
_HEAVY = ["pytest", "torch", "torch.distributed", "transformers", "peft", "accelerate", "datasets", "sklearn.metrics"]
_HEAVY += ["scipy.stats", "hypothesis", "jinja2", "altair", "vl_convert", "typer", "torchmetrics"]
_HEAVY += [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "gpt2", "llama")]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(_HEAVY)


class Started:
    """A function that is called in a process of its own, with its exit code and what it prints.

    Args:
        function: Found by its name in that process.
        arguments: Of the function; it makes its own exit code by ``sys.exit``.
        variables: Of the environment, beside those of this process.
    """

    def __init__(self, function: Callable[..., object], *arguments: object, **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        given = (function, arguments, {**os.environ, **variables}, *self._streams)
        self.process = CONTEXT.Process(target=_call, args=given)
        self.process.start()

    def end(self, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        """Wait for it, and kill it after so many seconds."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        with self._folder:
            printed = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self._streams]
        return subprocess.CompletedProcess((), self.process.exitcode or 0, *printed)


def call(function: Callable[..., object], *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """As ``Started``, to its end."""
    return Started(function, *arguments, **variables).end()


def _call(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    # As in the process of the tests. With one thread sums are taken in the same order.
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    function(*arguments)


def deltasam(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return call(command_line, *map(str, arguments), **variables)


def command_line(*arguments: str) -> None:
    """The command line in this process, which ends with it."""
    from deltasam.cli import main

    sys.argv = ["deltasam", *arguments]
    main()


def group_leader(*arguments: str) -> None:
    """As ``command_line``, with a process group of its own, as a shell gives every command."""
    os.setsid()
    command_line(*arguments)
