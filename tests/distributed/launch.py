"""Run a Python file in two processes that train together, on this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Imported after a group was made, this module holds on to the group beyond its end, and a thread of it may then abort
# the process on its way out. Scripts that are launched import it from here, before they make one.
import torch.distributed.nn.functional  # noqa: F401


def torchrun(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Two processes, with one thread each, that find the modules that are found here."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "COLUMNS": "200"}
    command += map(str, arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


def launch(script: Path, *arguments: object) -> str:
    """What a script prints in two processes. They must end well."""
    for _ in range(2):
        done = torchrun(script, *arguments)
        # Without a Python error of the script its start or end failed (a port that another program took): once more.
        if done.returncode == 0 or f'File "{script}"' in done.stderr:
            break
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def told(script: Path, *arguments: object) -> Any:
    """What a script's first process prints as its last line, read as JSON."""
    return json.loads(launch(script, *arguments).strip().splitlines()[-1])
