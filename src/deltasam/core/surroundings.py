"""What a call finds around it, and leaves there however it ends: modes of PyTorch, hooks of the model.

An interrupt (Ctrl-C) may fall between any two instructions of Python: before ``__exit__`` is called, inside it, or
inside a ``finally``. So context managers alone put nothing back for sure. What they should leave is noted before the
call; after an error it is set again, all of it, whatever they did, and once more if an interrupt falls into that too.
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
    """After an error of what runs inside, calls a function; ``with u, u:`` calls it again if it was broken off.

    A class, since a generator that an interrupt leaves suspended would go on when nobody expects it any more.

    Args:
        undo: What to call.
    """

    def __init__(self, undo: Callable[[BaseException], None]) -> None:
        self._undo, self._done = undo, False
        self._handled = sys.exc_info()[1]  # it is no part of what happens inside

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
            raise interrupt  # what it has left of a context manager was an error as well, and has hidden it


def interrupt_behind(error: BaseException, handled: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C that an error came of, if it did.

    Args:
        error: The error.
        handled: What was being handled before, of which it did not come.
    """
    link: BaseException | None = error
    while link is not None and link is not handled:
        if isinstance(link, KeyboardInterrupt):
            return link
        link = link.__context__
    return None


class Surroundings:
    """Grad mode, autocast, function and dispatch modes, and all else that is on or off for a while; a model's hooks.

    As they were when this was made. To make one costs microseconds.

    Args:
        model: Hooks that are registered on it or its modules from now on are removed by ``restore``.
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
        """Set all of it again."""
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
    """Let the context managers that an interrupt left suspended run to their ends now.

    Else a generator that is held by the traceback alone would do so when that is freed: it would put back what was
    there before, over what has come since. An ordinary error leaves none, and its frames are kept for a debugger.
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
    # In one instruction, which no interrupt falls into: the second undoes the first.
    _, nesting = map(methodcaller("__call__"), (torch.autocast_increment_nesting, torch.autocast_decrement_nesting))
    return int(nesting)
