"""A run on disk, half way: written whole or not at all, read back bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from deltasam.core.tensor_files import DamagedError, read_tensors, write_tensors
from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.config import refuse_difference
from deltasam.lab.train.run import Run


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
    refuse_difference(identity, run.identity(), f"the checkpoint {path}", f"give the same options, or {remedy}")
    if "examples" not in state:
        raise UserError(f"the checkpoint {path} is of an older version, which kept no record of examples; {remedy}")
    run.load_state_dict(state)
