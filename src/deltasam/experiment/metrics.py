"""Every metric of a model on a split, by torchmetrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics.functional import classification, regression

from deltasam.experiment import processes
from deltasam.experiment.batches import Batches


def evaluate(
    model: nn.Module, forward: Callable[[dict[str, Tensor]], Tensor], batches: Batches, batch_size: int, kind: str
) -> dict[str, float]:
    """The metrics of a model on a split, dropout off; all NaN when the model's outputs are not finite.

    Several processes share the batches, which are those of one, so that the metrics are too.

    Args:
        model: Left in the mode, training or evaluation, in which it came.
        forward: From a batch of inputs to logits [rows, outputs].
        batches: The split.
        batch_size: Rows per forward pass.
        kind: ``classification`` or ``regression``.
    """
    training, rows = model.training, batches.by_length()
    chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    model.eval()
    try:
        with torch.no_grad():
            mine = [forward(batches.batch(chunk)[0]).cpu() for chunk in chunks[processes.rank() :: processes.count()]]
    finally:
        model.train(training)
    theirs = processes.gather(mine)
    logits = torch.cat([theirs[i % len(theirs)][i // len(theirs)] for i in range(len(chunks))])
    labels = batches.labels[rows]
    return processes.on_main(lambda: _metrics(logits, labels, kind))  # one account of them, on whatever machines


def _metrics(logits: Tensor, labels: Tensor, kind: str) -> dict[str, float]:
    found = regression_metrics(logits[:, 0], labels) if kind == "regression" else class_metrics(logits, labels)
    return found if torch.isfinite(logits).all() else dict.fromkeys(found, math.nan)


def class_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of logits [n, classes] for labels [n].

    Returns:
        ``loss`` (NLL in nats), ``accuracy``, ``f1`` (of class 1 where there are two, else the mean over classes),
        ``matthews``, and ``ece`` (expected calibration error, 15 equal bins).
    """
    classes, predictions = logits.shape[1], logits.argmax(1)
    found = {
        "loss": cross_entropy(logits, labels),
        "accuracy": classification.multiclass_accuracy(predictions, labels, classes, average="micro"),
        "f1": classification.binary_f1_score(predictions, labels)
        if classes == 2
        else classification.multiclass_f1_score(predictions, labels, classes, average="macro"),
        "matthews": classification.multiclass_matthews_corrcoef(predictions, labels, classes),
        "ece": classification.multiclass_calibration_error(logits.softmax(1), labels, classes),
    }
    return {name: float(value) for name, value in found.items()}


def regression_metrics(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """``loss`` (mean squared error), ``pearson`` and ``spearman`` of predictions [n] and labels [n].

    A correlation with a constant prediction is NaN.
    """
    labels = labels.to(predictions.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The variance of predictions or target is close to zero")
        return {
            "loss": float(mse_loss(predictions, labels)),
            "pearson": float(regression.pearson_corrcoef(predictions, labels)),
            "spearman": float(regression.spearman_corrcoef(predictions, labels)),
        }
