"""Batches on the device, each made once for all passes of a step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor


class Feed:
    """The last few batches, on their device: the passes of a step ask for the same one again and again.

    To a GPU they are copied from pinned memory, so that nobody waits for it; and one can be made while it computes.

    Args:
        device: Of the batches.
        keep: How many are kept: those of a step, and of the next.
    """

    def __init__(self, device: str, keep: int = 2) -> None:
        self._device, self._keep = torch.device(device), keep
        self._batches: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()

    def batch(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch on the device.

        Args:
            key: What it consists of.
            make: Makes it on the CPU, if it is not there.
        """
        if key not in self._batches:
            # Whoever watches the functions of a pass would find that only the first has these.
            with torch._C.DisableTorchFunction():
                self._batches[key] = {name: self._there(tensor) for name, tensor in make().items()}
            if len(self._batches) > self._keep:
                self._batches.popitem(last=False)
        return dict(self._batches[key])

    def prefetch(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Make a batch before it is asked for, where something computes meanwhile."""
        if self._device.type == "cuda":
            self.batch(key, make)

    def _there(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)
