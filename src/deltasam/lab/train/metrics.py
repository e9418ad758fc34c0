"""Every metric of a model on a split, by scikit-learn and scipy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from deltasam.diagnostics.calibration import calibration_error
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.batches import Batches, outputs_of


def evaluate(
    model: nn.Module, forward: Callable[[dict[str, Tensor]], Tensor], batches: Batches, batch_size: int, kind: str
) -> dict[str, float]:
    """The metrics of a model on a split, without dropout; all NaN if the model's outputs are not finite.

    Several processes share the batches, which are the same as in one process, so that the metrics are too.

    Args:
        model: The model; it is left in the mode, training or evaluation, it was in.
        forward: Maps a batch of inputs to logits [rows, outputs].
        batches: The batches of the split.
        batch_size: Rows per forward pass.
        kind: ``classification`` or ``regression``.
    """
    rows = batches.by_length()
    logits = outputs_of(model, lambda some: forward(batches.batch(some)[0]), rows, batch_size)
    labels = batches.labels[rows]
    # Computed in one process: machines may differ in the last bits.
    return processes.on_main(lambda: _metrics(logits, labels, kind))


def evaluate_all(
    model: nn.Module,
    forward: Callable[[dict[str, Tensor]], Tensor],
    splits: Mapping[str, Batches],
    batch_size: int,
    kind: str,
) -> dict[str, float]:
    """The metrics of a model on several splits: ``accuracy`` of the one called ``""``, ``accuracy_mismatched``, ..."""
    found = {split: evaluate(model, forward, batches, batch_size, kind) for split, batches in splits.items()}
    return {
        f"{metric}_{split}" if split else metric: value
        for split, metrics in found.items()
        for metric, value in metrics.items()
    }


def _metrics(logits: Tensor, labels: Tensor, kind: str) -> dict[str, float]:
    found = regression_metrics(logits[:, 0], labels) if kind == "regression" else class_metrics(logits, labels)
    return found if torch.isfinite(logits).all() else dict.fromkeys(found, math.nan)


def class_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of logits [n, classes] for labels [n].

    Returns:
        ``loss`` (NLL in nats), ``accuracy``, ``f1`` (of class 1 where there are two, else the mean over classes),
        ``matthews`` (0 where predictions or labels are all of one class), and ``ece`` (expected calibration error,
        15 equal bins).
    """
    predictions = logits.argmax(1)
    average = "binary" if logits.shape[1] == 2 else "macro"
    found = {
        "loss": cross_entropy(logits, labels),
        # In 32 bits, as results always were: runs of old and new folders are compared to the last bit.
        "accuracy": (predictions == labels).float().mean(),
        # A class that is neither there nor predicted has no F1 and does not count; one that is only predicted has 0.
        "f1": f1_score(labels.numpy(), predictions.numpy(), average=average, zero_division=0.0),
        # Explicit: of labels of one class scikit-learn warns.
        "matthews": matthews_corrcoef(labels.numpy(), predictions.numpy()) if len(labels.unique()) > 1 else 0.0,
        "ece": calibration_error(logits, labels),
    }
    return {name: float(value) for name, value in found.items()}


def regression_metrics(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """``loss`` (mean squared error), ``pearson`` and ``spearman`` of predictions [n] and labels [n].

    A correlation with a constant prediction is NaN.
    """
    predictions, labels = predictions.double(), labels.double()
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        # scipy's, since torchmetrics has 32-bit ranks, and returns 0 for the correlation with a constant.
        return {
            "loss": float(mse_loss(predictions, labels)),
            "pearson": float(stats.pearsonr(predictions, labels).statistic),
            "spearman": float(stats.spearmanr(predictions, labels).statistic),
        }
