"""A command line that is broken off after a step, and the numbers that must be the same all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import forked


def signalled(number: signal.Signals, at: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which gets a real signal right after a step."""
    return forked.call(_signalled, number, at, *map(str, arguments))


def _signalled(number: signal.Signals, at: int, *arguments: str) -> None:
    import deltasam.lab.train.run as training

    step, taken = training.Run.step, []

    def counted(self: training.Run) -> training.StepRecord:
        taken.append(step(self))
        if len(taken) == at:
            os.kill(os.getpid(), number)
        return taken[-1]

    training.Run.step = counted  # type: ignore[method-assign]
    forked.command_line(*arguments)


def numbers(path: Path) -> list[str]:
    """Every number in a file of results except times and memory."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for run in runs:
        del run["seconds_per_step"], run["peak_memory_mib"]
        for step in run["steps"]:
            del step["seconds"]
    return [json.dumps(run) for run in runs]
