"""What compilers make of a model, and how to do without where every call of a torch function must be seen.

Compiled code calls no torch functions. And a ``TorchFunctionMode`` that is on would itself be compiled into the graph,
with what it noted for one batch taken for constants of all: a wrong gradient, silently.

- `torch._dynamo` (2.6): whether anything can have been compiled; its `OptimizedModule`, and `_compiled_call_impl` of a
  module: whether a model is. Without them: AttributeError at the first step once something is compiled.
- `_stance` and `_set_stance` of `torch._dynamo.eval_frame` (2.6): to set the stance again after an error. Without
  them: AttributeError there.
- `_torchdynamo_inline` of a scripted function (2.6): the Python function that was scripted. Without it: what is
  scripted is called as it is, and what it hides is refused.
- `ScriptFunction.__call__` is replaced meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

_call_script: Callable[..., Any] = torch.jit.ScriptFunction.__call__


def _call_source(script: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """Call the Python function that was scripted; a loaded or traced one has none, and is called itself."""
    source = getattr(script, "_torchdynamo_inline", None)
    return _call_script(script, *args, **kwargs) if source is None else source(*args, **kwargs)


@contextmanager
def eager() -> Iterator[None]:
    """Inside, ``torch.compile`` and the decorator ``torch.jit.script`` of functions have no effect.

    In forwards, and in backwards that run a forward again. Modules that are scripted or traced stay as they are.
    """
    kind: Any = torch.jit.ScriptFunction  # of which DeBERTa has some, in transformers 5.18 still
    before = kind.__call__
    try:
        kind.__call__ = _call_source
        with _uncompiled():
            yield
    finally:
        kind.__call__ = before


def _uncompiled() -> AbstractContextManager[object]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def is_compiled(modules: Iterable[nn.Module]) -> bool:
    """Whether one of some modules is compiled; compiled functions cannot be recognised from here."""
    if "torch._dynamo" not in sys.modules:
        return False
    compiled = torch._dynamo.OptimizedModule
    return any(isinstance(m, compiled) or m._compiled_call_impl is not None for m in modules)


def stance() -> Any:
    """What ``torch.compile`` does at present; None while nothing is compiled."""
    module = sys.modules.get("torch._dynamo.eval_frame")
    return None if module is None else module._stance


def set_stance(found: object) -> None:
    """Let ``torch.compile`` do what ``stance`` has found."""
    if found is not None and stance() is not found:
        sys.modules["torch._dynamo.eval_frame"]._set_stance(found)
