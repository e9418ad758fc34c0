"""What a model is worth with its weights rounded to a few bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltasam.core.checks import whole
from deltasam.core.restore import WeightStore
from deltasam.core.vectors import wide
from deltasam.diagnostics.after.change import AfterChange, ChangedWeights
from deltasam.diagnostics.after.weights import Evaluate, evaluated, holding, matrices


def after_rounding(
    model: nn.Module, evaluate: Evaluate, *, bits: Sequence[int] = (8, 4, 3), embeddings: bool = False
) -> AfterChange:
    """Evaluate a model with its weight matrices rounded to the nearest of ``2^bits - 1`` values.

    Symmetric, per output channel: a row w (all that belongs to one index of the first axis: one output of a linear
    layer, one filter of a convolution) becomes ``s round(w / s)`` with ``s = max |w| / (2^(bits - 1) - 1)``. That is
    the usual baseline of weight-only quantization (round to nearest: Dettmers et al. 2022, arXiv 2208.07339; Frantar
    et al. 2023, arXiv 2210.17323). What is computed stays in the model's own precision. Biases, norms and, unless
    asked for, embeddings keep their values, as they do there.

    Weights, gradients, buffers and random state are afterwards what they were, bit for bit, also after an exception.
    Meanwhile there is a copy of the matrices. The model stays in the mode in which it is.

    Args:
        model: Trainable and frozen matrices are rounded alike.
        evaluate: Runs the model on some data and gives its metrics; called once more than there are bits.
        bits: How many per weight, 2 or more each.
        embeddings: Round those of ``nn.Embedding`` too.

    Raises:
        ValueError: An argument cannot be used, or the model has no matrix.
    """
    bits = [whole("after_rounding", "bits", n, least=2) for n in bits]
    params, store = matrices("after_rounding", model, embeddings=embeddings), WeightStore()
    before, levels = evaluated("after_rounding", model, evaluate), []
    for n in bits:
        with holding(params, (rounded(p, n) for p in params), store):
            levels.append(ChangedWeights(f"{n} bits", n, evaluated("after_rounding", model, evaluate), {}))
    return AfterChange("rounding", before, tuple(levels))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A matrix [rows, ...] with every row rounded; a row of zeros stays."""
    values = wide(weight.detach())
    scale = values.abs().amax(dim=tuple(range(1, values.ndim)), keepdim=True) / (2 ** (bits - 1) - 1)
    return (values / torch.where(scale > 0, scale, 1)).round_().mul_(scale)
