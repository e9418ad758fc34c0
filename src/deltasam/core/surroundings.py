"""Restore PyTorch's modes and the model's hooks after an error or an interrupt.

An interrupt (Ctrl-C) may fall between any two instructions of Python: before ``__exit__`` is called, inside it, or
inside a ``finally``. So context managers alone cannot guarantee that state is restored. The state is saved before the
call; after an error all of it is set again, whatever the context managers did, and once more if an interrupt falls into
that too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from deltasam.core.torch_internals.compiled import set_stance, stance
from deltasam.core.torch_internals.modes import Modes, accelerator_kinds

_OURS = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), contextlib.__file__)


class UndoneOnError:
    """Call a function after an error inside the context; ``with u, u:`` calls it again if it was interrupted.

    A class, since a generator that an interrupt leaves suspended would resume at an unexpected time.

    Args:
        undo: The function, called with the error.
    """

    def __init__(self, undo: Callable[[BaseException], None]) -> None:
        self._undo, self._done = undo, False
        self._handled = sys.exc_info()[1]  # an earlier error, not one from inside the context

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if not self._done:
            self._undo(error)
            self._done = True
        interrupt = interrupt_behind(error, self._handled)
        if interrupt is not None and interrupt is not error:
            raise interrupt  # a context manager that it interrupted raised an error of its own, which hides it


def interrupt_behind(error: BaseException, handled: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that caused an error, if any.

    Args:
        error: The error.
        handled: The error that was already being handled, which is not a cause.
    """
    link: BaseException | None = error
    while link is not None and link is not handled:
        if isinstance(link, KeyboardInterrupt):
            return link
        link = link.__context__
    return None


class Surroundings:
    """Snapshot of grad mode, autocast, function and dispatch modes and other temporary state, and of a model's hooks.

    Taking one costs microseconds.

    Args:
        model: The model; ``restore`` removes hooks that were registered on it or its modules after the snapshot.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modes = Modes()
        self._cache, self._nesting = torch.is_autocast_cache_enabled(), _autocast_nesting()
        self._autocast = [
            (k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in {"cpu", *accelerator_kinds()}
        ]
        self._stance = stance()
        self._next_hook = RemovableHandle.next_id

    def restore(self) -> None:
        """Restore the snapshot."""
        self._modes.restore()
        self._restore_autocast()
        set_stance(self._stance)
        self._remove_hooks()

    def _restore_autocast(self) -> None:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(self._cache)
        for kind, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        while (nesting := _autocast_nesting()) != self._nesting:
            (torch.autocast_increment_nesting if nesting < self._nesting else torch.autocast_decrement_nesting)()

    def _remove_hooks(self) -> None:
        for module in self._model.modules():
            for hooks in [v for name, v in vars(module).items() if "_hooks" in name and isinstance(v, dict) and v]:
                for number in [n for n in hooks if isinstance(n, int) and n >= self._next_hook]:
                    hooks.pop(number, None)


def finish_suspended(error: BaseException) -> None:
    """Run the context managers that an interrupt left suspended to their ends now.

    Otherwise a generator held by the traceback alone would finish when the traceback is freed, and overwrite later
    state with what it had saved. An ordinary error leaves none suspended, and its frames are kept for a debugger.
    """
    links: list[BaseException | None] = [error]
    seen: set[BaseException] = set()
    while links and not isinstance(error, Exception):
        link = links.pop()
        if link is None or link in seen:
            continue
        seen.add(link)
        links += [link.__context__, link.__cause__]
        for frame, _ in walk_tb(link.__traceback__):
            if frame.f_code.co_filename.startswith(_OURS):
                with contextlib.suppress(RuntimeError):  # it is still running
                    frame.clear()


def _autocast_nesting() -> int:
    # Only a change of the nesting returns it; the second call undoes the first, in one instruction that no interrupt
    # can split.
    _, nesting = map(methodcaller("__call__"), (torch.autocast_increment_nesting, torch.autocast_decrement_nesting))
    return int(nesting)
