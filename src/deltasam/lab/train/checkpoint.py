"""Checkpoints of a run: written whole or not at all, read back bit for bit; and the training that goes on from them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deltasam.core.tensor_files import DamagedError, read_tensors, write_tensors
from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import check_same_options
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run, train_run
from deltasam.lab.train.tracking import tracked


def train_resumably(
    run: Run,
    checkpoint: Path | None,
    *,
    every: int,
    name: str,
    trackers: Sequence[str],
    on_progress: Callable[[Run], None],
    on_evaluation: Callable[[Run], None] = lambda run: None,
) -> RunResult:
    """Carry a fresh run to its end, from its checkpoint where there is one; the checkpoint then stays.

    Args:
        run: The run.
        checkpoint: File to save it in, beside what trackers write; None: it is not saved.
        every: Steps between checkpoints; 0: every epoch.
        name: What trackers call the run.
        trackers: As ``check_trackers`` takes them.
        on_progress: Called before the first and after every step.
        on_evaluation: Called after every evaluation.

    Raises:
        UserError: As ``resume_run`` and ``save_checkpoint``.
    """
    if checkpoint and processes.on_main(checkpoint.exists):
        resume_run(checkpoint, run)
    on_progress(run)

    def after_step(run: Run) -> None:
        on_progress(run)
        send()
        if checkpoint:
            save_when_due(checkpoint, run, every)

    with tracked(run, name, trackers, checkpoint and checkpoint.parent) as send:
        return train_run(run, on_step=after_step, on_evaluation=on_evaluation)


def save_checkpoint(path: Path, run: Run) -> None:
    """Write everything a run needs to go on: the main process does, with what it has from the others.

    Raises:
        UserError: The folder cannot be written, or the disk is full.
    """
    content = {"identity": run.identity(), "state": run.state_dict()}
    if processes.is_main():
        write_tensors(path, content)


def save_when_due(path: Path, run: Run, every: int) -> None:
    """Save after every so many steps, or at each epoch's end when that is 0; never when nothing is left to do."""
    due = len(run.steps) % every == 0 if every else run.at_epoch_end
    if due and not run.finished:
        save_checkpoint(path, run)


def resume_run(path: Path, run: Run) -> None:
    """Put a fresh run where the checkpoint was written. The main process reads it for all.

    Raises:
        UserError: The file is damaged, no checkpoint, of an older version, or of a run with other options.
    """
    remedy = f"delete {path} to start this run from its beginning"
    source = path if processes.count() == 1 else io.BytesIO(processes.on_main(path.read_bytes))
    try:
        saved: dict[str, Any] = read_tensors(source)
        identity, state = saved["identity"], saved["state"]
    except (DamagedError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the checkpoint {path} is damaged ({reason}); {remedy}") from error
    check_same_options(identity, run.identity(), f"the checkpoint {path}", f"give the same options, or {remedy}")
    if "examples" not in state:
        raise UserError(f"the checkpoint {path} is of an older version, which kept no record of examples; {remedy}")
    if state.get("frozen", run.frozen_digest) != run.frozen_digest:
        raise UserError(
            f"the checkpoint {path} is of a model with other frozen weights; give the same --model, or {remedy}"
        )
    run.load_state_dict(state)
