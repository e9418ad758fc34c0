"""What a model is worth with Gaussian noise on its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deltasam.core.checks import positive, whole
from deltasam.core.restore import WeightStore
from deltasam.diagnostics.after.change import AfterChange, ChangedWeights
from deltasam.diagnostics.after.weights import Evaluate, evaluated, holding, matrices


def after_noise(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    scales: Sequence[float] = (0.1, 0.2),
    draws: int = 4,
    seed: int = 0,
    embeddings: bool = False,
) -> AfterChange:
    """Evaluate a model with Gaussian noise on its weight matrices: means and standard errors over several draws.

    The noise on a matrix W of n entries is independent per entry, with standard deviation ``scale |W|_F / sqrt(n)``, so
    that it is about ``scale`` times as long as W. Every scale sees the same draws: what changes from one to the next is
    the scale alone. Biases, norms and, unless asked for, embeddings keep their values.

    Weights, gradients, buffers and random state are afterwards what they were, bit for bit, also after an exception.
    Meanwhile there is a copy of the matrices. The model stays in the mode in which it is.

    Args:
        model: Trainable and frozen matrices get noise alike.
        evaluate: Runs the model on some data and gives its metrics; called ``1 + draws * len(scales)`` times.
        scales: Sizes of the noise, in units of each matrix's own size (root mean square of its entries).
        draws: Of noise, 2 or more.
        seed: Of the noise, which is the same on every device.
        embeddings: Add noise to those of ``nn.Embedding`` too.

    Raises:
        ValueError: An argument cannot be used, or the model has no matrix.
    """
    scales = [positive("after_noise", "scales", scale) for scale in scales]
    draws = whole("after_noise", "draws", draws, least=2)
    params, store = matrices("after_noise", model, embeddings=embeddings), WeightStore()
    before, levels = evaluated("after_noise", model, evaluate), []
    for scale in scales:
        generator, found = torch.Generator().manual_seed(seed), []
        for _ in range(draws):
            with holding(params, _noisy(params, scale, generator), store):
                found.append(evaluated("after_noise", model, evaluate))
        # Not by statistics, which fails where a draw has made a metric infinite.
        table = torch.tensor(
            [[metrics[name] for name in before] for metrics in found], dtype=torch.float64, device="cpu"
        )
        means = dict(zip(before, table.mean(0).tolist(), strict=True))
        errors = dict(zip(before, (table.std(0) / math.sqrt(draws)).tolist(), strict=True))
        levels.append(ChangedWeights(f"noise {scale:g}", scale, means, errors))
    return AfterChange("noise", before, tuple(levels))


def _noisy(params: Sequence[nn.Parameter], scale: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Each matrix with noise of its own, drawn on the CPU, so the same everywhere."""
    for p in params:
        weight = p.detach().to(torch.promote_types(p.dtype, torch.float32))
        noise = torch.randn(p.shape, generator=generator, dtype=weight.dtype, device="cpu").to(p.device)
        deviation = scale * torch.linalg.vector_norm(weight) / math.sqrt(p.numel())
        yield noise.mul_(deviation).add_(weight)
