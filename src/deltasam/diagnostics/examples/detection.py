"""How well a number per example finds the labels that are known to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Detection:
    """A number per example, read as suspicion: the higher, the more likely its label is wrong.

    Below chance is information too: a method whose weights have an AUROC of 0.2 listens *less* to wrong labels, and its
    smallest weights find them as well as an AUROC of 0.8 would.
    """

    auroc: float | None = None
    """The chance that an example with a wrong label has a higher number than one with a right label, ties counted half;
    0.5 is chance. None: there are no wrong labels, or only wrong ones."""
    average_precision: float | None = None
    """The mean, over the wrong labels, of the share of wrong ones among all that rank as high; chance is the share of
    wrong labels. None as for ``auroc``."""


def detection(numbers: Tensor | Sequence[float], flipped: Tensor | Sequence[bool]) -> Detection:
    """How well the larger of some numbers find wrong labels, by scikit-learn.

    Args:
        numbers: One per example [n]; where there is none (NaN), the example is left out. Infinity is the largest.
        flipped: Whether the label is wrong [n].

    Raises:
        ValueError: The two are not equally long.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, wrong = torch.as_tensor(numbers).double().cpu(), torch.as_tensor(flipped, dtype=torch.bool).cpu()
    if values.shape != wrong.shape:
        raise ValueError(f"detection(numbers, flipped): {len(values)} numbers for {len(wrong)} examples; give one each")
    there = ~values.isnan()
    wrong = wrong[there]
    if not 0 < int(wrong.sum()) < len(wrong):
        return Detection()
    ranks = rankdata(values[there].numpy())  # scikit-learn takes no infinity; the order is all that counts
    return Detection(float(roc_auc_score(wrong, ranks)), float(average_precision_score(wrong, ranks)))
