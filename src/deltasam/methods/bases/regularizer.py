"""Methods that look into a forward from outside, and what they do about ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from deltasam.core.passes import Passes
from deltasam.core.torch_internals.compiled import eager, is_compiled
from deltasam.core.warn import warn
from deltasam.method import Method, Step


class AsWritten(Method):
    """A method whose passes run a compiled model as it was written: compiled code shows neither logits nor embeddings.

    Args:
        model: The model to train.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._said = False

    def _fill_from(self, micro_batches: Iterator[Passes]) -> Step:
        if not self._said and is_compiled(self.model.modules()):
            self._said = True
            warn(
                f"{type(self).__name__} runs the compiled model as it was written: compiled code does not show what "
                f"it must see of a forward; to train at the speed of compiled code use SAM or ASAM"
            )
        with eager():
            return super()._fill_from(micro_batches)
