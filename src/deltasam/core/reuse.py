"""Outputs of the first pass that the second pass can use again, since no moving parameter has a part in them.

Where only late layers move (``only=head``), everything below them computes the same in both passes. So the outputs of
the first pass are given again, with their graph, and the second pass begins where the weights begin to differ: a step
costs little more than a plain one.

An output is used again only if that is exact: the module holds no moving parameter, its inputs are those of the first
pass, its graph reaches no moving parameter (which it may hold unregistered), it has written into no buffer, and no hook
looks at it. Otherwise the module runs, as it would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core.dropout_masks import DropoutMasks
from deltasam.core.restore import RandomState
from deltasam.core.structure import Structure
from deltasam.core.torch_internals.compiled import is_compiled
from deltasam.core.torch_internals.graph import graph_of
from deltasam.core.torch_internals.modules import own_buffers, own_modules, own_parameters, watches
from deltasam.core.torch_internals.tensors import version_of

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


@dataclass
class _Call:
    """One call of a module in the first pass.

    Attributes:
        inputs: Everything that it was given, and the versions of the tensors among it.
        output: What it returned, likewise.
        random: The random state when it had returned.
        masks: The number of dropout masks that were drawn until then.
    """

    inputs: list[tuple[Any, int]]
    output: Any
    versions: list[tuple[Any, int]]
    random: RandomState
    masks: int


class Reuse:
    """The modules of a model whose outputs may be used again, and these outputs.

    Args:
        structure: Structure of the model.
        moving: Names of the parameters that move.
        devices: Devices whose random state a forward may advance.
        masks: The dropout masks of the first pass.
    """

    def __init__(
        self, structure: Structure, moving: frozenset[str], devices: set[torch.device], masks: DropoutMasks
    ) -> None:
        self._moving = [p for name, p in structure.trained.items() if name in moving]
        self._ids = {id(p) for p in self._moving}
        self._devices, self._masks = devices, masks
        self._calls: dict[nn.Module, list[_Call]] = {}
        possible = not structure.sharded and not is_compiled(structure.modules.values())
        self._modules = list(self._still(structure.model)) if possible else []

    def _still(self, module: nn.Module) -> Iterator[nn.Module]:
        """The largest modules with parameters none of which moves."""
        inside = list(module.modules())
        params = [p for m in inside for p in own_parameters(m).values() if p is not None]
        if not params:
            return
        if self._ids.isdisjoint(map(id, params)):
            if not any(map(watches, inside)):
                yield module
            return
        for child in own_modules(module).values():
            if child is not None:
                yield from self._still(child)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep outputs of the first forward, which is run inside."""
        buffers = {m: _versions([b for part in m.modules() for b in own_buffers(part).values()]) for m in self._modules}
        self._calls = {}
        with ExitStack() as hooks:
            for module in self._modules:
                hooks.callback(module.register_forward_hook(self._see, with_kwargs=True).remove)
            yield
        for module, versions in buffers.items():
            written = _versions([b for part in module.modules() for b in own_buffers(part).values()]) != versions
            if written or not all(self._is_still(call.output) for call in self._calls.get(module, ())):
                self._calls.pop(module, None)

    def _see(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs, outputs = (list(_leaves(of)) for of in ((args, kwargs), output))
        if any(leaf is _UNKNOWN for leaf in (*inputs, *outputs)):
            inputs = [_UNKNOWN]  # equal to nothing
        call = _Call(
            _with_versions(inputs), output, _with_versions(outputs), RandomState(self._devices), self._masks.drawn
        )
        self._calls.setdefault(module, []).append(call)

    def _is_still(self, output: Any) -> bool:
        """Whether the graph of an output reaches no moving parameter."""
        tensors = [t for t in _leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        return all(self._ids.isdisjoint(map(id, graph_of(t).leaves)) for t in tensors)

    @contextmanager
    def give(self) -> Iterator[None]:
        """Give these outputs in a later forward, which is run inside; once."""
        calls, self._calls = self._calls, {}
        storages = {p.untyped_storage().data_ptr() for p in self._moving}
        with ExitStack() as patches:
            for module, of_module in calls.items():
                own = vars(module).get("forward")
                patches.callback(_set_forward, module, own)
                _set_forward(module, self._forward(module.forward, of_module, storages))
            yield

    def _forward(self, run: Any, calls: Sequence[_Call], storages: set[int]) -> Any:
        rest = iter(calls)

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(rest, None)
            if call is None or not _same(call, (args, kwargs), storages):
                return run(*args, **kwargs)
            call.random.restore()
            self._masks.skip_to(call.masks)
            return call.output

        return forward


class _Unknown:
    """Stands for an object whose state cannot be compared."""


_UNKNOWN = _Unknown()


def _leaves(value: Any) -> Iterator[Any]:
    """All tensors and plain values in what a module is given or returns; keys and lengths count as plain values."""
    if isinstance(value, (Tensor, *_PLAIN)):
        yield value
    elif isinstance(value, Mapping):
        yield len(value)
        for key, item in value.items():
            yield from (str(key), *_leaves(item))
    elif isinstance(value, (tuple, list)):
        yield len(value)
        for item in value:
            yield from _leaves(item)
    else:
        yield _UNKNOWN


def _with_versions(leaves: list[Any]) -> list[tuple[Any, int]]:
    return list(zip(leaves, _versions(leaves), strict=True))


def _versions(values: list[Any]) -> list[int]:
    return [version_of(v) if isinstance(v, Tensor) and not v.is_inference() else 0 for v in values]


def _same(call: _Call, given: Any, storages: set[int]) -> bool:
    """Whether a module is given what it was given before, and what it returned then is as it was."""
    inputs = list(_leaves(given))
    if len(inputs) != len(call.inputs) or any(_versions([leaf]) != [version] for leaf, version in call.versions):
        return False
    return all(_equal(new, old, version, storages) for new, (old, version) in zip(inputs, call.inputs, strict=True))


def _equal(new: Any, old: Any, version: int, storages: set[int]) -> bool:
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return new is not _UNKNOWN and type(new) is type(old) and bool(new == old)
    if _versions([old]) != [version] or old.untyped_storage().data_ptr() in storages:
        return False
    if new is old:
        return True
    alike = new.dtype == old.dtype and new.device == old.device and new.shape == old.shape
    return alike and not new.requires_grad and not old.requires_grad and torch.equal(new, old)


def _set_forward(module: nn.Module, forward: Any) -> None:
    """Replace the forward of one module; None: that of its class."""
    if forward is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = forward
