"""A command line that is broken off after a step, and the numbers that must be the same all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# The real command line in a process of its own, which gets a real signal right after a step.
_SIGNALLED = """
import os, sys
import deltasam.lab.train.run as training
number, at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
step, taken = training.Run.step, []
def counted(self):
    taken.append(step(self))
    if len(taken) == at:
        os.kill(os.getpid(), number)
    return taken[-1]
training.Run.step = counted
from deltasam.cli import main
main()
"""


def signalled(number: signal.Signals, at: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _SIGNALLED, str(int(number)), str(at), *map(str, arguments)]
    # One thread, as in this process: sums are then taken in the same order.
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def numbers(path: Path) -> list[str]:
    """Every number in a file of results except times and memory."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for run in runs:
        del run["seconds_per_step"], run["peak_memory_mib"]
        for step in run["steps"]:
            del step["seconds"]
    return [json.dumps(run) for run in runs]
