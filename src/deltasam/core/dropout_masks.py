"""Dropout masks of the first pass, kept for the later ones instead of being drawn again.

On a CPU random numbers are drawn one after the other, and dropout can be a third of a training forward pass.
The later passes of a step need the very masks of the first, so these are kept, one byte per element. This is only
faster: the random state follows along mask by mask, so that everything else that draws numbers, and any mask that
does not fit, comes out of the generator as if nothing had been kept.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deltasam.core.structure import Structure
from deltasam.core.torch_internals.compiled import is_compiled
from deltasam.core.torch_internals.modes import DispatchMode
from deltasam.core.torch_internals.modules import Dropout

# To look into every operation costs a hundredth of a forward pass; masks are drawn in these functions. What others draw
# comes out of the generator.
_DRAWING = frozenset(["dropout", "scaled_dot_product_attention", "multi_head_attention_forward"])
_DRAW = torch.ops.aten.bernoulli_.float  # in place, what dropout on a CPU comes down to, attention's included


@dataclass(frozen=True)
class _Mask:
    kept: Tensor
    probability: float
    random_state: Tensor
    """Of the generator, after the mask was drawn."""


class DropoutMasks:
    """Records the masks of one pass and hands them out in every pass that replays it.

    Args:
        structure: Of the model. Nothing is recorded unless it is on the CPU and has dropout that is on, or if it is
            compiled.
    """

    def __init__(self, structure: Structure) -> None:
        modules = structure.modules.values()
        drops = any(m.training and m.p > 0 for m in modules if isinstance(m, Dropout))
        on_cpu = drops and all(p.device.type == "cpu" for p in structure.parameters.values())
        self._active = on_cpu and not is_compiled(modules)
        self._masks: list[_Mask] = []

    def record(self) -> AbstractContextManager[object]:
        """Around the forward of the first pass."""
        return _WhereDrawn(_Record(self._masks)) if self._active else nullcontext()

    def replay(self) -> AbstractContextManager[object]:
        """Around the forward of a later pass, with the random state where the first pass began."""
        return _WhereDrawn(_Replay(self._masks)) if self._active else nullcontext()


class _WhereDrawn(TorchFunctionMode):
    def __init__(self, mode: DispatchMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A compiled function draws its masks itself, in one graph.
        if getattr(func, "__name__", "") in _DRAWING and not torch.compiler.is_compiling():
            with self._mode:
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Record(DispatchMode):
    def __init__(self, masks: list[_Mask]) -> None:
        super().__init__()
        self._masks = masks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _DRAW and not kwargs:  # a generator of the user's own is left alone
            self._masks.append(_Mask(result.to(torch.bool), _probability(args), torch.get_rng_state()))
        return result


class _Replay(DispatchMode):
    def __init__(self, masks: list[_Mask]) -> None:
        super().__init__()
        self._rest = iter(masks)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DRAW and not kwargs:
            mask = next(self._rest, None)
            if mask is not None and mask.kept.shape == args[0].shape and mask.probability == _probability(args):
                torch.set_rng_state(mask.random_state)
                return args[0].copy_(mask.kept)
        return func(*args, **(kwargs or {}))


def _probability(args: tuple[Any, ...]) -> float:
    return float(args[1]) if len(args) > 1 else 0.5
