"""R3F: predictions should not change under a little noise in the embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import nonnegative, one_of
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Step
from deltasam.methods.bases import embeddings
from deltasam.methods.bases.predictions import logits_of, predictions_of, watched
from deltasam.methods.bases.regularizer import PredictionRegularizer


class R3F(PredictionRegularizer, name="r3f"):
    """Consistency with a forward that has noise in the embeddings: ``grad [L + lam * D(p, p_noisy)]``.

    D is the mean over the predictions of ``KL(p, p_noisy) + KL(p_noisy, p)``, each weighted as in the loss. In the
    noisy forward the embeddings receive no gradient. For regression there is no D, as in the authors' code, and it is
    plain training.

    Cost: two forwards and a backward through both.

    Source: Aghajanyan et al., "Better Fine-Tuning by Reducing Representational Collapse", ICLR 2021 (arXiv 2008.03156);
    fresh masks and the missing gradient follow the authors' code.

    When: fine-tuning a pretrained language model to predict classes or tokens, as a baseline without an ascent.

    When not: regression, where it has no effect. Inputs are not token ids (images, ``inputs_embeds``): refused.

    Args:
        model: The model to train.
        eps: Magnitude of the noise.
        lam: Weight of D. 0 is plain training.
        noise: Distribution: ``uniform`` between plus and minus eps, or ``normal`` with standard deviation eps.
        dropout: ``fresh``: the noisy forward draws other dropout masks, as in the authors' code, so with dropout D
            is mostly R-Drop's; or ``same``: only the noise differs, as in the equation.

    Raises:
        ValueError: eps or lam is negative, NaN or infinite, or noise or dropout is unknown.
    """

    neutral: ClassVar[dict[str, float]] = {"lam": 0.0}

    def __init__(
        self, model: nn.Module, *, eps: float = 1e-5, lam: float = 1.0, noise: str = "uniform", dropout: str = "fresh"
    ) -> None:
        super().__init__(model)
        self.eps = nonnegative("R3F", "eps", eps)
        self.lam = nonnegative("R3F", "lam", lam)
        self.noise = one_of("R3F", "noise", noise, ("uniform", "normal"))
        self.dropout = one_of("R3F", "dropout", dropout, ("fresh", "same"))

    def regularize(self, passes: Passes) -> Step:
        generator = torch.Generator().manual_seed(passes.seed())
        offset = embeddings.EmbeddingOffset(self.model, lambda x, real: self._start(x, real, generator), detach=True)
        with watched(self.model) as seen:
            output = passes.first()
        loss = loss_of(output)
        passes.check_autograd_graph(loss)
        predictions = predictions_of(output, seen, loss, "R3F")
        if predictions.are_numbers:
            return Step(passes.backward(loss))
        with offset.added(), watched(self.model) as seen, passes.at(fresh=self.fresh_dropout) as point:
            offset.check()
            divergence = predictions.divergence(logits_of(point.output, seen, "R3F"))
            passes.backward(loss + self.lam * divergence)
        noisy = loss_of(point.output).detach()
        return Step(loss.detach(), {"perturbed_loss": noisy, "divergence_loss": divergence.detach()})

    def _start(self, x: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
        if self.noise == "normal":
            return self.eps * embeddings.sample_noise(torch.randn, x, real, generator)
        return self.eps * (2 * embeddings.sample_noise(torch.rand, x, real, generator) - real[..., None].to(x))
