"""Rank correlation of embedding similarities with human scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cosine_similarity

from deltasam.lab.data.sentences import ScoredPairs


def similarity_metrics(
    embeddings: Tensor, places: Mapping[str, int], sets: Mapping[str, ScoredPairs]
) -> dict[str, float]:
    """``spearman``, the mean over the sets, and ``spearman_<name>`` of each.

    A set gives one correlation over all its pairs, whatever its subsets.

    Args:
        embeddings: Embeddings of all sentences [sentences, d].
        places: The row of each sentence.
        sets: The sets of scored pairs, by name.
    """
    found = {
        f"spearman_{name}": spearman(_similarities(embeddings, places, pairs), pairs) for name, pairs in sets.items()
    }
    return {"spearman": statistics.fmean(found.values()), **found}


def spearman(similarities: Tensor, pairs: ScoredPairs) -> float:
    """Rank correlation of similarities [pairs] with the gold scores; NaN where one is not finite, or all are equal."""
    if not torch.isfinite(similarities).all() or (similarities == similarities[0]).all():
        return math.nan
    return float(spearmanr(similarities.numpy(), pairs.scores).statistic)


def _similarities(embeddings: Tensor, places: Mapping[str, int], pairs: ScoredPairs) -> Tensor:
    """Cosines [pairs], rounded to the digits that are exact in float64, so that rounding errors do not affect ranks."""
    first, second = (
        embeddings[[places[sentence] for sentence in side]].double().cpu() for side in (pairs.first, pairs.second)
    )
    return cosine_similarity(first, second).round(decimals=12)
