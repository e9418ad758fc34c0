"""Files of tensors and plain values: written atomically, verified on reading, and without executable content."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from deltasam.core.files import cannot_write, replacing


class DamagedError(ValueError):
    """A file is corrupted, or of another kind."""


def write_tensors(path: Path, content: object) -> None:
    """Write nested dictionaries and lists of tensors and plain values.

    Raises:
        UserError: The folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:  # given a path, PyTorch hides the system's reason
                torch.save(content, file)
        except RuntimeError as error:  # PyTorch's error for a failed write
            raise cannot_write(path, error) from error


def read_tensors(source: Path | IO[bytes]) -> Any:
    """Read what ``write_tensors`` wrote, onto the CPU.

    Raises:
        DamagedError: A part is missing or altered, or it is another kind of file.
    """
    try:
        # PyTorch does not verify the checksums it writes; a flipped bit would go unnoticed.
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedError(f"checksum of {broken}")
        if not isinstance(source, Path):
            source.seek(0)
        return torch.load(source, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DamagedError(str(error).strip().splitlines()[0]) from error
