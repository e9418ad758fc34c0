"""What a model is worth with its smallest weights set to 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deltasam.core.checks import fraction, one_of
from deltasam.core.restore import WeightStore
from deltasam.core.vectors import wide
from deltasam.diagnostics.after.change import AfterChange, ChangedWeights
from deltasam.diagnostics.after.weights import Evaluate, evaluated, holding, matrices


def after_pruning(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    shares: Sequence[float] = (0.3, 0.5, 0.6),
    within: str = "matrix",
    embeddings: bool = False,
) -> AfterChange:
    """Evaluate a model with a share of its weight matrices' entries, those of least magnitude, set to 0.

    Unstructured and in one go, without training after it. ``within="matrix"`` takes the same share of every matrix, as
    the magnitude baseline of one-shot pruning does (Sun et al. 2024, arXiv 2306.11695); ``within="model"`` takes the
    smallest of all matrices together, as is usual where pruning and training alternate (Chen et al. 2020, arXiv
    2007.12223), and may empty a matrix whose weights are small. Biases, norms and, unless asked for, embeddings keep
    their values.

    Exactly ``round(share * entries)`` entries are set to 0: of equal ones the first. Weights, gradients, buffers and
    random state are afterwards what they were, bit for bit, also after an exception. Meanwhile there is a copy of the
    matrices, with ``within="model"`` two in 32 bits. The model stays in the mode in which it is.

    Args:
        model: Trainable and frozen matrices are pruned alike.
        evaluate: Runs the model on some data and gives its metrics; called once more than there are shares.
        shares: Of the entries, 0 or more and below 1 each.
        within: ``matrix`` or ``model``: among which entries the smallest are looked for.
        embeddings: Prune those of ``nn.Embedding`` too.

    Raises:
        ValueError: An argument cannot be used, or the model has no matrix.
    """
    shares = [fraction("after_pruning", "shares", share) for share in shares]
    together = one_of("after_pruning", "within", within, ("matrix", "model")) == "model"
    params, store = matrices("after_pruning", model, embeddings=embeddings), WeightStore()
    before, levels = evaluated("after_pruning", model, evaluate), []
    for share in shares:
        values = _pruned_together(params, share) if together else (pruned(p, share) for p in params)
        with holding(params, values, store):
            metrics = evaluated("after_pruning", model, evaluate)
        levels.append(ChangedWeights(f"{100 * share:g} % pruned", share, metrics, {}))
    return AfterChange("pruning", before, tuple(levels))


def pruned(weight: Tensor, share: float) -> Tensor:
    """A tensor of any shape with ``round(share * entries)`` of its entries, the smallest, set to 0."""
    values = weight.detach()
    sizes, count = wide(values).abs().flatten(), round(share * values.numel())
    if not count:
        return values
    # Not by kthvalue, which PyTorch does not count among what is deterministic on CUDA.
    threshold = sizes.topk(count, largest=False, sorted=False).values.max()
    gone, equal = sizes < threshold, (sizes == threshold).nonzero()[:, 0]
    gone[equal[: count - int(gone.sum())]] = True
    return values.masked_fill(gone.view(values.shape), 0)


def _pruned_together(params: Sequence[nn.Parameter], share: float) -> Iterator[Tensor]:
    device = params[0].device
    whole = pruned(torch.cat([wide(p.detach()).flatten().to(device) for p in params]), share)
    for p, values in zip(params, whole.split([p.numel() for p in params]), strict=True):
        yield values.view(p.shape)
