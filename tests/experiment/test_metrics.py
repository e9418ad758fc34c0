"""Metrics of fixed predictions: those of other libraries than compute them, and a few by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

from deltasam.lab.train.metrics import class_metrics, regression_metrics


def predicted(classes: int, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right more often than not, and unequally many labels of each class."""
    random = np.random.RandomState(classes)
    labels = random.choice(classes, size=rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = random.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_is_that_of_other_libraries(classes):
    logits, labels = predicted(classes)
    found, guesses = class_metrics(logits, labels), logits.argmax(1)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, guesses), abs=1e-7)
    expected = multiclass_f1_score(guesses, labels, classes) if classes > 2 else binary_f1_score(guesses, labels)
    assert found["f1"] == pytest.approx(float(expected), abs=1e-6)
    assert found["matthews"] == pytest.approx(float(multiclass_matthews_corrcoef(guesses, labels, classes)), abs=1e-6)
    chances = logits.double().softmax(1)
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, chances), abs=1e-6)


def test_by_hand():
    # Predicted 1 1 1 0 0 0 for 1 1 0 0 0 1: two true positives, one false, one missed, two true negatives.
    logits = torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 3)
    found = class_metrics(logits, torch.tensor([1, 1, 0, 0, 0, 1]))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["matthews"] == pytest.approx((2 * 2 - 1 * 1) / 9)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("guess", [0, 1])
def test_one_class_for_all_is_no_correlation(classes, guess):
    labels = torch.tensor([1] * 7 + [0] * 3)
    logits = torch.nn.functional.one_hot(torch.full((10,), guess), classes).float()
    found = class_metrics(logits, labels)
    assert found["matthews"] == sklearn.matthews_corrcoef(labels, logits.argmax(1)) == 0
    if classes == 2:
        assert found["f1"] == pytest.approx(float(binary_f1_score(logits.argmax(1), labels)))


def test_labels_of_one_class():
    assert class_metrics(torch.eye(2), torch.tensor([1, 1]))["matthews"] == 0
    assert class_metrics(torch.tensor([[0.0, 1.0]] * 2), torch.tensor([1, 1]))["matthews"] == 0


def test_macro_f1_counts_a_class_that_is_never_predicted():
    labels = torch.tensor([0, 0, 1, 1, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 1]), 3).float()
    expected = float(multiclass_f1_score(logits.argmax(1), labels, 3))
    assert class_metrics(logits, labels)["f1"] == pytest.approx(expected) == pytest.approx((0.8 + 0.5 + 0) / 3)


@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_error_is_the_plain_sum_over_bins(classes):
    logits, labels = predicted(classes)
    confidence, guesses = logits.softmax(1).max(1)
    confidence, right = confidence.double().numpy(), (guesses == labels).double().numpy()
    error = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert class_metrics(logits, labels)["ece"] == pytest.approx(error, abs=1e-6)


def test_calibration_by_hand():
    # Sure with 0.9 twice, right once; sure with 0.6 twice, right both times.
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]).log()
    found = class_metrics(logits, torch.tensor([0, 1, 1, 1]))
    assert found["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(ties):
    random = np.random.RandomState(7)
    labels = random.uniform(0, 5, 300)
    predictions = labels + random.normal(0, 2, 300)
    if ties:  # as scores of people are: in steps
        labels, predictions = np.round(labels), np.round(predictions)
        assert len(set(labels)) < 10
    predictions = predictions.astype(np.float32)
    found = regression_metrics(torch.tensor(predictions), torch.tensor(labels))
    assert found["pearson"] == pytest.approx(stats.pearsonr(predictions, labels).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, labels).statistic, abs=1e-9)
    assert found["loss"] == pytest.approx(sklearn.mean_squared_error(labels, predictions), abs=1e-9)


def test_correlations_by_hand():
    # Ranks 1 2.5 2.5 4 against 1 2 3 4.
    found = regression_metrics(torch.tensor([0.0, 1.0, 1.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_predictions_that_hardly_differ_still_correlate():
    # As at the start of training: the differences are in the last digits of 32 bits.
    labels = torch.arange(50, dtype=torch.float64) / 10
    predictions = (2 + 1e-5 * labels).float()
    found = regression_metrics(predictions, labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predictions, labels).statistic, abs=1e-6)


def test_a_constant_prediction_has_no_correlation():
    found = regression_metrics(torch.full((5,), 2.0), torch.arange(5.0))
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert found["loss"] == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_correlation(bad):
    found = regression_metrics(torch.tensor([0.0, 1.0, bad, 3.0]), torch.arange(4.0))
    assert math.isnan(found["pearson"])
    assert not math.isfinite(found["loss"])
