"""R3F: a little noise in the embeddings shall not change the prediction."""

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
    """A second forward with noise in the embeddings, pulled to the first: ``grad [L + lam * D(p, p_noisy)]``.

    D is the mean over the predictions of ``KL(p, p_noisy) + KL(p_noisy, p)``, each weighted as in the loss. In the
    noisy forward the embeddings get no gradient. For regression there is no D, as in the authors' code, and it is plain
    training.

    Cost: two forwards and a backward of both.

    Source: Aghajanyan et al., "Better Fine-Tuning by Reducing Representational Collapse", ICLR 2021 (arXiv 2008.03156);
    fresh masks and the missing gradient are the authors' code.

    When: fine-tuning a pretrained language model to classes or tokens, as a baseline without an ascent.

    When not: regression: it does nothing there. Inputs that are no token ids (images, ``inputs_embeds``): refused.

    Args:
        model: The model to train.
        eps: Size of the noise.
        lam: Weight of D. 0 is plain training.
        noise: ``uniform``: between plus and minus eps; or ``normal``: with standard deviation eps.
        dropout: ``fresh``: the noisy forward has other dropout masks, as in the authors' code, so with dropout D
            is mostly R-Drop's; or ``same``: the noise is all that differs, as the equation has it.

    Raises:
        ValueError: eps or lam is negative, NaN or infinite, or there is no such noise or dropout.
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
