"""Send a run to experiment trackers while it goes on: TensorBoard, Weights & Biases, ... by those of Accelerate."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.jsonable import flat

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from deltasam.lab.train.run import Run

PROJECT = "deltasam"
"""What runs are filed under in a tracker that has projects."""

FOLDER = "tracking"
"""Where, in an output folder, the trackers that write files write them."""


def check_trackers(names: Sequence[str], *, files: bool = True) -> None:
    """Check, before any work, that the trackers can be used.

    Args:
        names: As Accelerate calls them: ``tensorboard``, ``wandb``.
        files: Whether those that write files have a place to write to.

    Raises:
        UserError: There is no such tracker, its library is missing, or it has no place to write to.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(t) for t in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"--track {name}: there is no such tracker; choose among {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            extra = "'deltasam[track]'" if name == "tensorboard" else name
            raise UserError(f"--track {name}: its library is not installed; pip install {extra}")
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and not files:
            raise UserError(f"--track {name}: writes files, and machines need not share a disk; use another --launcher")


@contextmanager
def tracked(run: Run, name: str, trackers: Sequence[str], folder: Path | None) -> Iterator[Callable[[], None]]:
    """Give a function that sends the last step of a run, and the evaluations after it, to trackers.

    What was sent is complete when this ends, however it ends.

    Args:
        run: Fresh, or resumed: what it has done already is not sent again.
        name: What to call it.
        trackers: As ``check_trackers`` takes them; none is fine.
        folder: For those that write files.
    """
    with ExitStack() as stack:
        started = [_start(t, run, name, folder) for t in trackers] if processes.is_main() else []
        for tracker in started:
            stack.callback(tracker.finish)
        sent = len(run.evaluations)

        def send() -> None:
            nonlocal sent
            step = run.steps[-1]
            values = {f"train/{key}": value for key, value in dataclasses.asdict(step).items() if key != "step"}
            for record in run.evaluations[sent:]:
                values |= {f"eval/{key}": value for key, value in record.metrics.items()}
            sent = len(run.evaluations)
            known = {key: value for key, value in values.items() if not math.isnan(value)}
            for tracker in started:
                tracker.log(known, step=step.step)

        yield send


def _start(kind: str, run: Run, name: str, folder: Path | None) -> GeneralTracker:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tracker_class: Any = LOGGER_TYPE_TO_CLASS[kind]
    if tracker_class.requires_logging_directory:
        if folder is None:
            raise ValueError(f"{kind}: there is no folder to write to")
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        options = {}
        if kind == "tensorboard" and run.steps:
            # What a resumed run sends once more, the steps after its checkpoint, is not to be seen twice.
            options = {"purge_step": len(run.steps) + 1}
            _wait_past(place / _file_name(name))
        tracker = tracker_class(_file_name(name), logging_dir=str(place), **options)
    else:
        tracker = tracker_class(PROJECT, **({_NAME_OF_RUN[kind]: name} if kind in _NAME_OF_RUN else {}))
    tracker.start()
    if not run.steps:
        tracker.store_init_configuration({k: _scalar(v) for k, v in flat(run.identity()) if v is not None})
    return tracker


def _wait_past(folder: Path) -> None:
    """Wait until a new file of TensorBoard's goes behind those of the folder.

    It reads them by name, ``events.out.tfevents.SECOND.host.process.number``, and what a file purges is what it finds
    in those before it: within one second, the number of the process would decide.
    """
    seconds = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    ahead = max(seconds, default=0) + 1 - time.time()
    if ahead > _LONGEST_WAIT:
        raise UserError(f"{folder}: its files are {ahead:.0f} s ahead of the clock; set it, or move them away")
    time.sleep(max(0.0, ahead))


_LONGEST_WAIT = 60.0
"""Seconds; a clock that is further behind was set back."""


# How the others call the name of a run; those that are not here make one up.
_NAME_OF_RUN = {
    "clearml": "task_name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "trackio": "name",
    "wandb": "name",
}


def _scalar(value: object) -> bool | int | float | str:
    """What trackers take of an option."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _file_name(name: str) -> str:
    """A name that any system takes for a folder's."""
    return re.sub(r"[^\w.=,-]+", "-", name)[:120]
