"""R-Drop: two dropout masks should give the same prediction."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from deltasam.core.checks import nonnegative
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Step
from deltasam.methods.bases.predictions import logits_of, predictions_of, watched
from deltasam.methods.bases.regularizer import PredictionRegularizer


class RDrop(PredictionRegularizer, name="r_drop"):
    """Consistency of two forwards with different dropout masks: ``grad [(L + L') / 2 + alpha * D(p, p')]``.

    D is the mean over the predictions of ``(KL(p, p') + KL(p', p)) / 2``, each weighted as in the loss; for regression
    it is the squared difference. Without dropout it is plain training.

    Cost: two forwards and a backward through both.

    Source: Wu et al., "R-Drop: Regularized Dropout for Neural Networks", NeurIPS 2021 (arXiv 2106.14448).
    The two losses are averaged, as in the authors' code for GLUE, and not summed as in the paper: the learning rate
    keeps its meaning, and alpha here is half of the paper's.

    When: the model has dropout and predicts classes or tokens; a common baseline in fine-tuning.

    When not: the model has no dropout: there is nothing to compare. The loss is not a weighted sum of cross entropies
    or squared errors, and the closure cannot return the logits' weights.

    Args:
        model: The model to train.
        alpha: Weight of the divergence. 0 is plain training.

    Raises:
        ValueError: alpha is negative, NaN or infinite.
    """

    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}

    def __init__(self, model: nn.Module, *, alpha: float = 0.7) -> None:
        super().__init__(model)
        self.alpha = nonnegative("RDrop", "alpha", alpha)

    def regularize(self, passes: Passes) -> Step:
        with watched(self.model) as seen:
            output = passes.first()
        loss = loss_of(output)
        passes.check_autograd_graph(loss)
        predictions = predictions_of(output, seen, loss, "RDrop")
        with watched(self.model) as seen, passes.at(fresh=True) as point:
            again = loss_of(point.output)
            divergence = predictions.divergence(logits_of(point.output, seen, "RDrop"))
            if not predictions.are_numbers:
                divergence = divergence / 2
            passes.backward((loss + again) / 2 + self.alpha * divergence)
        return Step(loss.detach(), {"perturbed_loss": again.detach(), "divergence_loss": divergence.detach()})
