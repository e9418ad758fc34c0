"""Outputs of the first pass that the second pass can use again, since no moving parameter has a part in them.

Where only late layers move (``only=head``), everything below them computes the same in both passes. So the outputs of
the first pass are given again, with their graph, and the second pass begins where the weights begin to differ: a step
costs little more than a plain one.

That is exact where a module's outputs are all that it does, and depend on its inputs alone. What can be seen is looked
at in every step: a module that holds a moving parameter, or whose graph reaches one, that has hooks, is called with
other inputs or in another mode, or whose outputs were written into, runs a second time. What cannot be seen (a list
that it appends to, a checkpoint around it) is found by a check: in steps 1, 10, 100, ..., and whenever the calls differ
from those that were checked, the gradient is taken with and without using outputs again, and one that differs ends it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.closeness import is_looked_at
from deltasam.core.dropout_masks import DropoutMasks
from deltasam.core.restore import RandomState
from deltasam.core.structure import Structure
from deltasam.core.torch_internals.compiled import is_compiled
from deltasam.core.torch_internals.graph import reaches
from deltasam.core.torch_internals.modules import is_hooked, own_modules, own_parameters
from deltasam.core.torch_internals.tensors import number_of_hooks, version_of
from deltasam.core.torch_internals.trees import tree_flatten, tree_unflatten
from deltasam.core.vectors import HALF_DTYPES, Vector

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)

Behaviour = tuple[object, ...]
"""The calls of a first pass, in words and numbers: equal for passes that a check of one of them holds for."""


@dataclass
class ReuseHistory:
    """What checks have found so far.

    Attributes:
        steps: Number of steps with outputs that may be used again.
        exact: Whether using them gave the gradient of a pass without, by behaviour.
    """

    steps: int = 0
    exact: dict[Behaviour, bool] = field(default_factory=dict)

    @property
    def no_check_failed(self) -> bool:
        """Whether outputs may be used again at all."""
        return all(self.exact.values())

    def is_due(self, behaviour: Behaviour) -> bool:
        """Whether the present step, which did this, is to be checked."""
        return is_looked_at(self.steps) or behaviour not in self.exact


@dataclass
class _Call:
    """One call of a module in the first pass.

    Attributes:
        mode: Gradients, training, autocast.
        inputs: Everything that it was given, and the versions of the tensors among it.
        output: What it returned, likewise.
        specs: How both are nested.
        random: The random state when it had returned.
        masks: The number of dropout masks that were drawn until then.
    """

    mode: tuple[bool, ...]
    inputs: list[tuple[Any, int]]
    output: list[tuple[Any, int]]
    specs: tuple[Any, Any]
    random: RandomState
    masks: int


class Reuse:
    """The modules of a model whose outputs may be used again, and these outputs.

    Args:
        structure: Structure of the model.
        moving: Names of the parameters that move.
        devices: Devices whose random state a forward may advance.
        masks: The dropout masks of the first pass.
        history: What checks have found; it is updated.
    """

    def __init__(
        self,
        structure: Structure,
        moving: frozenset[str],
        devices: set[torch.device],
        masks: DropoutMasks,
        history: ReuseHistory,
    ) -> None:
        self._moving = [p for name, p in structure.trained.items() if name in moving]
        self._ids = {id(p) for p in self._moving}
        self._devices, self._masks, self._buffers = devices, masks, structure.buffers
        self._calls: dict[nn.Module, list[_Call]] = {}
        self._order: list[object] = []
        self.history = history
        possible = not structure.sharded and not is_compiled(structure.modules.values())
        found = self._still(structure.model) if possible and history.no_check_failed else iter(())
        self._modules = {module: number for number, module in enumerate(dict.fromkeys(found))}

    def _still(self, module: nn.Module) -> Iterator[nn.Module]:
        """The largest modules with parameters none of which moves."""
        inside = list(module.modules())
        params = [p for m in inside for p in own_parameters(m).values() if p is not None]
        if not params:
            return
        if self._ids.isdisjoint(map(id, params)):
            if not any("forward" in vars(m) for m in inside):
                yield module
            return
        for child in own_modules(module).values():
            if child is not None:
                yield from self._still(child)

    @property
    def is_possible(self) -> bool:
        """Whether there are outputs to be used again."""
        return bool(self._calls)

    @property
    def behaviour(self) -> Behaviour:
        """The calls of the first pass."""
        return tuple(self._order)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep outputs of the first forward, which is run inside."""
        before = _versions(self._buffers)
        with self._in_place_of_forwards({m: self._keeping(m, m.forward) for m in self._modules}):
            yield
        written = before != _versions(self._buffers)
        passed: set[Any] = set()  # layers on top of each other have the graph below in common
        self._calls = {
            m: calls
            for m, calls in self._calls.items()
            if not written and all(self._may_be_given(call, passed) for call in calls)
        }
        self._order.append(tuple(self._modules[m] for m in self._calls))

    def _keeping(self, module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            mode = _mode(module, args)
            given, how = tree_flatten((args, kwargs))
            inputs = _with_versions(given)
            result = run(*args, **kwargs)
            output, nested = tree_flatten(result)
            call = _Call(
                mode, inputs, _with_versions(output), (how, nested), RandomState(self._devices), self._masks.drawn
            )
            self._calls.setdefault(module, []).append(call)
            self._order.append((self._modules[module], mode, any(map(is_hooked, module.modules()))))
            return result

        return forward

    def _may_be_given(self, call: _Call, passed: set[Any]) -> bool:
        """Whether all that came in and out can be compared, and its graph reaches no moving parameter."""
        leaves = [leaf for leaf, _ in (*call.inputs, *call.output)]
        if not all(isinstance(leaf, _PLAIN) or _is_ordinary(leaf) for leaf in leaves):
            return False
        outputs = [t for t, _ in call.output if isinstance(t, Tensor) and t.requires_grad]
        return not reaches(outputs, self._ids, passed)

    @contextmanager
    def give(self) -> Iterator[None]:
        """Give these outputs in a later forward, which is run inside; once."""
        calls, self._calls = self._calls, {}
        storages = {p.untyped_storage().data_ptr() for p in self._moving}
        with self._in_place_of_forwards({m: self._giving(m, m.forward, c, storages) for m, c in calls.items()}):
            yield

    def _giving(
        self, module: nn.Module, run: Callable[..., Any], calls: list[_Call], storages: set[int]
    ) -> Callable[..., Any]:
        rest = iter(calls)

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(rest, None)
            if call is None or any(map(is_hooked, module.modules())) or not _same(call, module, args, kwargs, storages):
                return run(*args, **kwargs)
            call.random.restore()
            self._masks.skip_to(call.masks)
            return tree_unflatten([leaf for leaf, _ in call.output], call.specs[1])  # containers may have been changed

        return forward

    @contextmanager
    def _in_place_of_forwards(self, forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
        with ExitStack() as undoing:
            for module, forward in forwards.items():
                undoing.callback(vars(module).pop, "forward", None)  # it had none of its own: see _still
                vars(module)["forward"] = forward
            yield


def same_gradient(found: Vector, expected: Vector) -> bool:
    """Whether two gradients are equal up to rounding."""
    length, apart = vectors.length(expected).value, vectors.length(vectors.plus(found, expected, -1.0)).value
    there = [t for t in expected if t is not None]
    halves = any(t.dtype in HALF_DTYPES for t in there) or torch.is_autocast_enabled(there[0].device.type)
    tolerance = 0.03 if halves else 1e-9 if all(t.dtype.itemsize > 4 for t in there) else 1e-4
    alike = [a is None for a in found] == [b is None for b in expected]
    return alike and (apart <= tolerance * length or math.isnan(apart))  # NaN shows nothing; no weight moves then


def _mode(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[bool, ...]:
    kinds = {t.device.type for t in inputs if isinstance(t, Tensor)} or {"cpu"}
    autocast = any(torch.is_autocast_enabled(kind) for kind in kinds)
    return (torch.is_grad_enabled(), autocast, *(m.training for m in module.modules()))


def _is_ordinary(value: object) -> bool:
    """Whether it is a tensor with memory of its own kind: not sparse, nested, or wrapped by a transformation."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    try:
        return value.untyped_storage().data_ptr() is not None
    except (NotImplementedError, RuntimeError):
        return False


def _with_versions(leaves: list[Any]) -> list[tuple[Any, int]]:
    return list(zip(leaves, _versions(leaves), strict=True))


def _versions(values: list[Any]) -> list[int]:
    return [version_of(v) if isinstance(v, Tensor) and not v.is_inference() else 0 for v in values]


def _same(call: _Call, module: nn.Module, args: Any, kwargs: Any, storages: set[int]) -> bool:
    """Whether a module is called as it was before, and what it returned then is as it was."""
    given, how = tree_flatten((args, kwargs))
    if call.mode != _mode(module, args) or how != call.specs[0]:
        return False
    for leaf, version in call.output:
        if _versions([leaf]) != [version] or (isinstance(leaf, Tensor) and number_of_hooks(leaf)):
            return False
    return all(_equal(new, old, version, storages) for new, (old, version) in zip(given, call.inputs, strict=True))


def _equal(new: Any, old: Any, version: int, storages: set[int]) -> bool:
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return type(new) is type(old) and bool(new == old)
    if _versions([old]) != [version] or not _is_ordinary(new) or old.untyped_storage().data_ptr() in storages:
        return False
    if new is old:
        return True
    alike = new.dtype == old.dtype and new.device == old.device and new.shape == old.shape
    return alike and not new.requires_grad and not old.requires_grad and torch.equal(new, old)
