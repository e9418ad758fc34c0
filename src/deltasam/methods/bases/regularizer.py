"""Base classes of the methods that regularise the model's predictions and do not move the weights."""

from __future__ import annotations

import abc
from collections.abc import Iterator

from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Method, Step
from deltasam.methods.bases.outputs import as_written


class Regularizer(Method):
    """A method that hooks into the forward pass; with its neutral hyper-parameters it runs one plain pass.

    A compiled model is run eagerly, with a warning: hooks see neither logits nor embeddings in compiled code.

    Args:
        model: The model to train.
    """

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        """Fill ``.grad`` from micro-batches, running the model eagerly."""
        with as_written(self):
            return super().fill_step(micro_batches)

    def fill(self, passes: Passes) -> Step:
        """Run the passes of one micro-batch and fill ``.grad``."""
        if all(getattr(self, key) == value for key, value in self.neutral.items()):
            return Step(passes.backward(loss_of(passes.plain_forward())))
        return self.regularize(passes)

    @abc.abstractmethod
    def regularize(self, passes: Passes) -> Step:
        """Fill ``.grad`` with the gradient of the regularised loss."""


class PredictionRegularizer(Regularizer):
    """A regulariser that compares the predictions of two forwards.

    Attributes:
        dropout: ``fresh``: the later forwards draw new dropout masks; ``same``: they replay those of the first.
    """

    dropout: str = "fresh"

    @property
    def compares_predictions(self) -> bool:
        """Always."""
        return True

    @property
    def fresh_dropout(self) -> bool:
        """Whether ``dropout`` is ``fresh``."""
        return self.dropout == "fresh"
