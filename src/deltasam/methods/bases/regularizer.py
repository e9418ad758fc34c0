"""Base classes of the methods that leave the weights where they are and regularise what the model predicts."""

from __future__ import annotations

import abc
from collections.abc import Iterator

from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.core.torch_internals.compiled import eager, is_compiled
from deltasam.method import Method, Step


class Regularizer(Method):
    """A method that looks into the forward pass; at its neutral hyper-parameters it runs one plain pass.

    A compiled model is run eagerly, with a warning: compiled code shows neither logits nor embeddings.

    Args:
        model: The model to train.
    """

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        """Fill ``.grad`` from micro-batches, the model run eagerly."""
        if is_compiled(self.model.modules()):
            self.warn_once(
                f"{type(self).__name__} runs the compiled model as it was written: compiled code does not show what "
                f"it must see of a forward; to train at the speed of compiled code use SAM or ASAM"
            )
        with eager():
            return super().fill_step(micro_batches)

    def fill(self, passes: Passes) -> Step:
        """Run the passes of one micro-batch and fill ``.grad``."""
        if all(getattr(self, key) == value for key, value in self.neutral.items()):
            return Step(passes.backward(loss_of(passes.plain_forward())))
        return self.regularize(passes)

    @abc.abstractmethod
    def regularize(self, passes: Passes) -> Step:
        """Fill ``.grad`` with the gradient of the loss and its regularisation."""


class PredictionRegularizer(Regularizer):
    """A regulariser that compares the predictions of two forwards.

    Attributes:
        dropout: ``fresh``: the later forwards draw other dropout masks than the first; ``same``: they replay its own.
    """

    dropout: str = "fresh"

    @property
    def compares_predictions(self) -> bool:
        """Always."""
        return True

    @property
    def fresh_dropout(self) -> bool:
        """As ``dropout`` says."""
        return self.dropout == "fresh"
