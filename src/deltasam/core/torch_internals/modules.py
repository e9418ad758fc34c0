"""What a module holds by itself, and the classes that kinds of layers have in common.

- `Module._parameters`, `Module._buffers`, `Module._modules` (2.6): one walk through a model in the place of four, and
  buffers under their names, those that are None too. Without them: AttributeError at the first step.
- `Module._forward_hooks`, `_forward_pre_hooks`, `_backward_hooks`, `_backward_pre_hooks` and `_has_any_global_hook`
  (2.6): whether something looks at what a module does. Without them: AttributeError where only some parameters move.
- `batchnorm._BatchNorm` (2.6): layers in which the examples of a batch meet. Without it: AttributeError at import.
- `dropout._DropoutNd` (2.6): whether a model has dropout that is on. Without it: the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm
"""All that normalise over the batch."""

Dropout = nn.modules.dropout._DropoutNd
"""All that draw a mask."""


def own_parameters(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Its parameters, without those of modules in it."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Its buffers; what is written into the dictionary is written into the module."""
    return module._buffers


def own_modules(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The modules directly in it."""
    return module._modules


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks look at what a module does, or it is a script that none can look at."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or nn.modules.module._has_any_global_hook() or isinstance(module, torch.jit.ScriptModule)
