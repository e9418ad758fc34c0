"""Modes that are on for a while: what sees, or changes, each call of a function or an operation.

- `torch._C`: its `DisableTorchFunction` (2.6): a look at tensors that no function mode sees. Without it:
  AttributeError at import.
- `_functorch` of `_C`: `peek_interpreter_stack` (2.6): whether a transform of ``torch.func`` is going on. Without it:
  AttributeError at the first step of a per-example method.
- `overrides._get_current_function_mode_stack` and `_get_current_dispatch_mode_stack` of `_python_dispatch`, which has
  `TorchDispatchMode` too (2.6): the modes that are on. Without them: ImportError.
- `_should_skip_dynamo` of a dispatch mode: whether it gets a wrapper that keeps the compiler out. Where nothing asks
  for it, modes cost ten times as much.
- `_autograd` of `_C`: `_top_saved_tensors_default_hooks` (2.8): the innermost hooks on saved tensors, as of gradient
  checkpointing. Without it: those that an interrupt left stay, and checkpointed layers share no products.
- `_is_torch_function_enabled`, `_set_grad_enabled` and `_get_accelerator` of `_C` (2.6), to note and to set what is on
  without anybody seeing it. Without them: AttributeError at the first step, or after an error.
- `_len_torch_function_stack`, `_pop_torch_function_stack`, `_push_on_torch_function_stack`, the same three of dispatch
  modes, `_len_torch_dispatch_stack`, `_pop_torch_dispatch_stack`, `_push_on_torch_dispatch_stack`, and
  `_pop_saved_tensors_default_hooks` (2.6): to put back, after an error, what an interrupt has left. Without them:
  AttributeError in the place of that error.
- `torch._ops`: its `OpOverload` and `OpOverloadPacket` (2.6): operations of the dispatcher among functions. Without
  them: AttributeError at import.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _python_dispatch

_C: Any = torch._C

OPERATIONS: tuple[type, ...] = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
"""Operations of the dispatcher, with or without a choice of arguments; some exist with ``out=`` only."""

unseen = torch._C.DisableTorchFunction
"""``with unseen():`` function modes see nothing of what is called inside."""


class DispatchMode(_python_dispatch.TorchDispatchMode):
    """A dispatch mode for what is not compiled: it needs no wrapper that keeps the compiler out."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper costs ten times what the mode does


def in_functorch_transform() -> bool:
    """Whether a ``vmap`` or the like is going on."""
    return _C._functorch.peek_interpreter_stack() is not None


class Modes:
    """Grad mode, function and dispatch modes, transforms of ``torch.func`` and hooks on saved tensors.

    As they were when this was made.
    """

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._function = _C._is_torch_function_enabled()
        self._function_modes: list[TorchFunctionMode] = _get_current_function_mode_stack()
        self._dispatch_modes = _python_dispatch._get_current_dispatch_mode_stack()
        self._dispatch_flags = {k: v for k, v in vars(_python_dispatch).items() if k.startswith("_is_in_")}
        self._levels = _levels()
        self._saving = _saved_tensors_hooks()

    def restore(self) -> None:
        """Set all of it again."""
        _C._set_grad_enabled(self._grad)
        if self._function:
            _C.DisableTorchFunction().__exit__(None, None, None)  # one that was not entered has found it enabled
        for _ in range(_levels() - self._levels):
            _C._functorch.pop_dynamic_layer_stack()
        if _get_current_function_mode_stack() != self._function_modes:
            for _ in range(_C._len_torch_function_stack()):
                _C._pop_torch_function_stack()
            for mode in self._function_modes:
                _C._push_on_torch_function_stack(mode)
        if _python_dispatch._get_current_dispatch_mode_stack() != self._dispatch_modes:
            for _ in range(_C._len_torch_dispatch_stack()):
                _C._pop_torch_dispatch_stack(None)
            for dispatch_mode in self._dispatch_modes:
                _C._push_on_torch_dispatch_stack(dispatch_mode)
        vars(_python_dispatch).update(self._dispatch_flags)
        while (found := _saved_tensors_hooks()) is not None and found != self._saving:
            _C._autograd._pop_saved_tensors_default_hooks()


def accelerator_kinds() -> list[str]:
    """The kind of the accelerator, if there is one."""
    return [_C._get_accelerator().type] if torch.accelerator.is_available() else []


def _levels() -> int:
    """How many ``vmap`` and the like are going on."""
    return len(_C._functorch.get_interpreter_stack() or ())


def _saved_tensors_hooks() -> tuple[object, object] | None:
    """The innermost hooks on tensors that a graph saves; None where there are none, or PyTorch does not tell."""
    innermost = getattr(_C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if innermost is None else innermost(True)


def checkpoint_region() -> object:
    """What stands for the checkpointed region of a forward that is under way; None outside of all.

    Where PyTorch does not tell, an object of its own for each call: none is taken for another.
    """
    if not hasattr(_C._autograd, "_top_saved_tensors_default_hooks"):
        return object()
    hooks = _saved_tensors_hooks()
    return hooks[0] if hooks else None
