"""Run a Python file in two processes that train together, on this machine's CPU."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Imported after a group was made, this module holds on to the group beyond its end, and a thread of it may then abort
# the process on its way out. Scripts that are launched import it from here, before they make one.
import torch.distributed.nn.functional  # noqa: F401

import forked


def torchrun(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Two processes from their start, with one thread each, that find the modules that are found here."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "COLUMNS": "200"}
    command += map(str, arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


def told(script: Path, *arguments: object) -> Any:
    """What a script's first process prints as its last line, read as JSON."""
    return json.loads(launch(script, *arguments).strip().splitlines()[-1])


def launch(script: Path, *arguments: object) -> str:
    """What the first of two processes of a script prints. Both must end well."""
    for _ in range(2):
        done = in_two(script, *arguments)
        # Without a Python error of the script its start or end failed (a port that another program took): once more.
        if not any(run.returncode for run in done) or any(f'File "{script}"' in run.stderr for run in done):
            break
    for run in done:
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    return done[0].stdout


def in_two(script: Path, *arguments: object, seconds: float = 240) -> list[subprocess.CompletedProcess[str]]:
    """A script in two forked processes, as torchrun would start them."""
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environment = {**group, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    words = [str(script), *map(str, arguments)]
    started = [forked.Started(_script, *words, **environment, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    until = time.monotonic() + seconds
    return [run.end(until - time.monotonic()) for run in started]


def _script(path: str, *arguments: str) -> None:
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
