"""FreeLB: adversarial perturbations of the input embeddings; every ascent step also contributes to the gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import nonnegative, whole
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Step
from deltasam.methods.bases import embeddings
from deltasam.methods.bases.embeddings import EmbeddingOffset
from deltasam.methods.bases.regularizer import Regularizer


class FreeLB(Regularizer, name="freelb"):
    """Mean gradient along an ascent in the input embeddings: ``mean_t grad L(w, x + delta_t)``, t = 1 to steps.

    ``delta_1`` is uniform noise, ``delta_{t+1} = delta_t + adv_lr * g_t / |g_t|`` with ``g_t`` the gradient of the loss
    with respect to it, normalised per example and projected to norm max_norm where it is longer. All steps see the same
    dropout masks. Needs a loss only, no logits. The metric ``loss`` and the statistics of BatchNorm are those at
    ``delta_1``; ``perturbed_loss`` is the loss at the last delta.

    Cost: as many passes as ``steps``.

    Source: Zhu et al., "FreeLB: Enhanced Adversarial Training for Natural Language Understanding", ICLR 2020
    (arXiv 1909.11764), algorithm 1.

    When: you want robustness to small changes of the input words rather than flatness in the weights. It needs no
    logits, so it works with any loss.

    When not: inputs are not token ids (images, ``inputs_embeds``): refused. The paper's settings are per task and range
    widely: it needs a search.

    Args:
        model: The model to train.
        steps: Number of gradients that are averaged.
        adv_lr: Length of an ascent step, in the Euclidean norm over all tokens of an example.
        init_mag: Magnitude of the initial noise: uniform between plus and minus init_mag / sqrt(tokens * width), so
            its norm is about 0.6 init_mag. With adv_lr=0 and init_mag=0 it is plain training.
        max_norm: Largest norm of an offset. 0: unbounded.

    Raises:
        ValueError: steps is below 1, or another argument is negative, NaN or infinite.
    """

    neutral: ClassVar[dict[str, float]] = {"adv_lr": 0.0, "init_mag": 0.0}

    def __init__(
        self, model: nn.Module, *, steps: int = 3, adv_lr: float = 0.1, init_mag: float = 0.1, max_norm: float = 0.0
    ) -> None:
        super().__init__(model)
        self.steps = whole("FreeLB", "steps", steps)
        self.adv_lr = nonnegative("FreeLB", "adv_lr", adv_lr)
        self.init_mag = nonnegative("FreeLB", "init_mag", init_mag)
        self.max_norm = nonnegative("FreeLB", "max_norm", max_norm)

    def regularize(self, passes: Passes) -> Step:
        generator = torch.Generator().manual_seed(passes.seed())
        offset = EmbeddingOffset(self.model, lambda x, real: self._start(x, real, generator))
        with offset.added():
            loss = loss_of(passes.first())
            passes.check_autograd_graph(loss)
            self._descend(passes, loss, offset)
        last = loss
        for _ in range(self.steps - 1):
            self._ascend(offset)
            with offset.added(), passes.at() as point:
                last = loss_of(point.output)
                self._descend(passes, last, offset)
        return Step(loss.detach(), {"perturbed_loss": last.detach()})

    def _start(self, x: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
        noise = 2 * embeddings.sample_noise(torch.rand, x, real, generator) - real[..., None].to(x)
        size = real.sum(1).clamp(min=1) * x.shape[-1]
        return self.init_mag * noise / size.to(x).sqrt()[:, None, None]

    def _descend(self, passes: Passes, loss: Tensor, offset: EmbeddingOffset) -> None:
        offset.check()
        passes.backward(loss / self.steps)

    def _ascend(self, offset: EmbeddingOffset) -> None:
        delta, gradient = offset.value.detach(), offset.value.grad
        moved = delta if gradient is None else delta + self.adv_lr * embeddings.normalized_direction(gradient, _length)
        length = _length(moved)
        if self.max_norm:
            moved = torch.where(length > self.max_norm, moved * (self.max_norm / length), moved)
        offset.set_(moved)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-1, -2), keepdim=True)
