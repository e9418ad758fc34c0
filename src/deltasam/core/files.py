"""Atomic writes of files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltasam.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYSTEM_REASON = re.compile(r"\(os error (\d+)\)")  # as Rust's libraries end their messages


class CannotWriteError(UserError):
    """A file could not be written; a previous file at the same path is unchanged.

    Args:
        failed: Message that names the file and the system's reason.
        full: Whether the disk is full.
    """

    def __init__(self, failed: str, full: bool) -> None:
        super().__init__(failed, full)
        self.failed, self.full = failed, full

    def __str__(self) -> str:
        first = "free some space" if self.full else "make it writable"
        return f"{self.failed}; {first} or choose another --output"

    def and_then(self, remedy: str) -> str:
        """The message for a command that can be resumed once there is space."""
        return f"{self.failed}; free some space; {remedy}" if self.full else str(self)


def cannot_write(what: object, error: BaseException) -> CannotWriteError:
    """The error for something that could not be written.

    Args:
        what: The path, or a description that includes it.
        error: The exception that was raised: the system's, or a library's that was caused by it.
    """
    number = _system_reason(error)
    reason = os.strerror(number) if number else str(error).strip().splitlines()[0]
    return CannotWriteError(f"cannot write {what}: {reason}", number in _FULL)


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed since the disk is full."""
    return _system_reason(error) in _FULL


def _system_reason(error: BaseException) -> int | None:
    """The errno behind an error: libraries raise errors of their own instead, PyTorch's without the reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        if found := _SYSTEM_REASON.search(str(cause)):
            return int(found[1])
        cause = cause.__cause__ or cause.__context__
    return None


def write_atomically(path: Path, text: str) -> None:
    """Write a file atomically: a crash or a full disk never leaves half of it.

    Raises:
        CannotWriteError: The folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` on exit, and is deleted on an exception.

    A killed process leaves ``.name.partial``, which the next attempt overwrites.

    Raises:
        CannotWriteError: The folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error
