"""Run a Python file in two processes that train together, on this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def launch(script: Path, *arguments: object, processes: int = 2, timeout: float = 240) -> Any:
    """What the processes' first one prints as its last line, read as JSON."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command += [str(script), *map(str, arguments)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
        # Without a Python error of the script its start or end failed (a port that another program took): once more.
        if done.returncode == 0 or f'File "{script}"' in done.stderr:
            break
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
