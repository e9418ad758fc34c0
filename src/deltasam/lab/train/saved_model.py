"""A trained model as a folder that ``from_pretrained`` loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deltasam.core.files import cannot_write
from deltasam.lab.train.models import quiet_transformers
from deltasam.lab.train.run import Run


def save_model(folder: Path, run: Run) -> None:
    """Write weights (safetensors), tokenizer and label names; an existing model is replaced.

    Each file is replaced atomically, and only the weights differ between evaluations: after the first one the folder
    always holds a complete model.

    Raises:
        CannotWriteError: The folder cannot be written, or the disk is full; an existing model stays intact.
    """
    from safetensors import SafetensorError

    partial = folder / ".model.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with quiet_transformers():
                run.model.save_pretrained(partial)
                run.task.tokenizer.save_pretrained(partial)
            for file in sorted(partial.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise cannot_write(f"the model to {folder}", error) from error
