"""Cache of the first pass's dropout masks, so that later passes need not draw them again.

On a CPU random numbers are drawn sequentially, and dropout can take a third of a training forward pass. The later
passes of a step need exactly the masks of the first, so these are kept, one byte per element. This affects speed only:
the random state is advanced mask by mask, so that all other random numbers, and any mask that does not match, come out
of the generator as if nothing had been cached.
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

# Intercepting every operation would cost 1 % of a forward pass; masks are drawn in these functions only. Random numbers
# of other functions come out of the generator.
_DRAWING = frozenset(["dropout", "scaled_dot_product_attention", "multi_head_attention_forward"])
_DRAW = torch.ops.aten.bernoulli_.float  # in place: what dropout on a CPU is made of, in attention too


@dataclass(frozen=True)
class _Mask:
    kept: Tensor
    probability: float
    random_state: Tensor
    """State of the generator after the mask was drawn."""


class DropoutMasks:
    """Record the masks of one pass and replay them in later passes.

    Args:
        structure: Structure of the model. Nothing is recorded unless the model is on the CPU, has active dropout, and
            is not compiled.
    """

    def __init__(self, structure: Structure) -> None:
        modules = structure.modules.values()
        drops = any(m.training and m.p > 0 for m in modules if isinstance(m, Dropout))
        on_cpu = drops and all(p.device.type == "cpu" for p in structure.parameters.values())
        self._active = on_cpu and not is_compiled(modules)
        self._masks: list[_Mask] = []
        self._replayed = _Replay(self._masks)

    @property
    def drawn(self) -> int:
        """The number of masks recorded so far."""
        return len(self._masks)

    def skip_to(self, count: int) -> None:
        """Go on replaying behind this number of masks: those before belong to what is not run again."""
        self._replayed.position = count

    def record(self) -> AbstractContextManager[object]:
        """Context for the forward of the first pass."""
        return _WhereDrawn(_Record(self._masks)) if self._active else nullcontext()

    def replay(self) -> AbstractContextManager[object]:
        """Context for the forward of a later pass; enter it with the random state from the start of the first pass."""
        self._replayed = _Replay(self._masks)
        return _WhereDrawn(self._replayed) if self._active else nullcontext()


class _WhereDrawn(TorchFunctionMode):
    def __init__(self, mode: DispatchMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A compiled function draws its masks inside its own graph.
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
        if func is _DRAW and not kwargs:  # with kwargs it draws from the user's own generator
            self._masks.append(_Mask(result.to(torch.bool), _probability(args), torch.get_rng_state()))
        return result


class _Replay(DispatchMode):
    def __init__(self, masks: list[_Mask]) -> None:
        super().__init__()
        self._masks = masks
        self.position = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DRAW and not kwargs:
            mask = self._masks[self.position] if self.position < len(self._masks) else None
            self.position += 1
            if mask is not None and mask.kept.shape == args[0].shape and mask.probability == _probability(args):
                torch.set_rng_state(mask.random_state)
                return args[0].copy_(mask.kept)
        return func(*args, **(kwargs or {}))


def _probability(args: tuple[Any, ...]) -> float:
    return float(args[1]) if len(args) > 1 else 0.5
