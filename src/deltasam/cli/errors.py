"""Messages for errors and interruptions. Imports nothing that may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deltasam.core.files import CannotWriteError, cannot_write, disk_is_full
from deltasam.errors import UserError

if TYPE_CHECKING:
    from deltasam import NotCoveredError


_EXTRAS = {  # what only some commands need
    "accelerate": "track",
    "curvlinops": "hessian",
    "matplotlib": "diagnostics",
    "rouge_score": "summarization",
}


def install_hint(error: ModuleNotFoundError) -> str:
    """One line that names the missing library and the extra that brings it.

    Raises:
        ModuleNotFoundError: What is missing is a part of deltasam itself: a defect, not a missing extra.
    """
    name = (error.name or "").partition(".")[0]
    if name in ("", "deltasam"):
        raise error
    return f"the library {name!r} is not installed; pip install 'deltasam[{_EXTRAS.get(name, 'cli')}]'"


def build_hint(error: BaseException) -> str | None:
    """One line on a torchvision of another build than torch, with which transformers cannot load; None otherwise."""
    if not any("torchvision::" in str(cause) for cause in _causes(error)):
        return None
    return (
        "transformers cannot be imported: the installed torchvision is of another build than torch; "
        "pip uninstall torchvision, or install it from where torch came from"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the latest first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def refusal(error: NotCoveredError) -> str:
    """Why a method cannot train the model, and which spec can."""
    return f"{error}\nAs a spec: {' or '.join(error.specs)}" if error.specs else str(error)


@contextmanager
def interruptible(remedy: Callable[[], str]) -> Iterator[None]:
    """Say how to go on after Ctrl-C, or when the disk is full.

    Args:
        remedy: Gives what is kept and what to do, when it is called.

    Raises:
        KeyboardInterrupt: With the remedy as its message.
        UserError: A file could not be written; with the remedy.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"; {remedy()}") from error
    except CannotWriteError as error:
        raise UserError(error.and_then(remedy())) from error
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise UserError(full(error).and_then(remedy())) from error


def full(error: OSError) -> CannotWriteError:
    """The error of a library that writes files itself: a tracker, a cache."""
    return cannot_write(error.filename or "a file", error)
