"""Calibration beside counts by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from deltasam.diagnostics import calibration, plot_reliability
from deltasam.lab.train.metrics import class_metrics


def sample(n: int = 200, sharper: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from a softmax, and its logits times a factor: calibrated where that is 1."""
    logits = 2 * torch.randn(n, 3, dtype=torch.float64)
    return sharper * logits, torch.multinomial(logits.softmax(1), 1)[:, 0]


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_equals_counts_by_hand(bins: int) -> None:
    logits, labels = sample()
    found = calibration(logits, labels, bins=bins)
    rows = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        exps = [math.exp(x) for x in row]
        p = [e / sum(exps) for e in exps]
        rows.append((p, label, max(p), p.index(max(p)) == label))
    error = 0.0
    for i, bin_ in enumerate(found.bins):
        inside = [r for r in rows if i / bins <= r[2] < (i + 1) / bins]
        assert (bin_.low, bin_.high) == pytest.approx((i / bins, (i + 1) / bins))
        assert bin_.count == len(inside)
        if not inside:
            assert bin_.confidence is None
            assert bin_.accuracy is None
            continue
        confidence, accuracy = sum(r[2] for r in inside) / len(inside), sum(r[3] for r in inside) / len(inside)
        assert bin_.confidence == pytest.approx(confidence)
        assert bin_.accuracy == pytest.approx(accuracy)
        error += len(inside) / len(rows) * abs(confidence - accuracy)
    assert found.ece == pytest.approx(error)
    brier = [sum((q - (k == label)) ** 2 for k, q in enumerate(p)) for p, label, *_ in rows]
    assert found.brier == pytest.approx(sum(brier) / len(rows))
    assert found.nll == pytest.approx(sum(-math.log(p[label]) for p, label, *_ in rows) / len(rows))
    assert found.accuracy == pytest.approx(sum(r[3] for r in rows) / len(rows))
    assert found.examples == 200


def test_is_the_error_that_training_reports() -> None:
    logits, labels = sample(sharper=2.0)
    assert calibration(logits, labels).ece == class_metrics(logits, labels)["ece"]


def test_certain_predictions_are_in_the_last_bin() -> None:
    found = calibration(1e6 * F.one_hot(torch.tensor([0, 1, 1])).double(), torch.tensor([0, 1, 0]))
    assert [b.count for b in found.bins] == [0] * 14 + [3]
    assert found.bins[-1].accuracy == pytest.approx(2 / 3)
    assert found.ece == pytest.approx(1 / 3)


def test_the_error_is_that_of_the_bins_where_some_are_certain() -> None:
    """Sure to the last bit twice, wrong both times; nearly as sure three times, right each time: one bin."""
    logits = torch.tensor([[1000.0, 0.0]] * 2 + [[3.5, 0.0]] * 3)
    labels = torch.tensor([1, 1, 0, 0, 0])
    found = calibration(logits, labels)
    assert found.ece == pytest.approx(sum(b.count / 5 * abs(b.confidence - b.accuracy) for b in found.bins if b.count))
    assert found.ece == pytest.approx((2 + 3 / (1 + math.exp(-3.5))) / 5 - 3 / 5)
    assert class_metrics(logits, labels)["ece"] == found.ece


def test_what_chance_makes_of_a_calibrated_model() -> None:
    """About 95 of 100 calibrated samples stay below it; a model that is too sure does not, and is called so."""
    below, samples = 0, 60
    for _ in range(samples):
        found = calibration(*sample())
        below += found.ece <= found.ece_by_chance
    assert 0.85 * samples <= below <= samples
    overconfident = calibration(*sample(sharper=4.0))
    assert overconfident.ece > overconfident.ece_by_chance
    assert "overconfident by" in overconfident.reading
    assert "cannot be told from a calibrated one" in calibration(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])).reading
    assert calibration(*sample(2000)).ece_by_chance < found.ece_by_chance


def test_random_state_is_left_alone_and_the_seed_decides() -> None:
    logits, labels = sample()
    before = torch.get_rng_state()
    one, two, three = (calibration(logits, labels, seed=s).ece_by_chance for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == two != three


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3).long(), "two classes or more"),
        (torch.zeros(3, 2), torch.zeros(2).long(), r"labels of shape \[2\]"),
        (torch.zeros(0, 2), torch.zeros(0).long(), r"shape \[0, 2\]"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1).long(), "not finite"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), r"label -100 is none of the classes 0 to 2; leave out rows"),
        (torch.zeros(2, 3), torch.tensor([3, 0]), "label 3 is none of the classes 0 to 2"),
    ],
)
def test_what_cannot_be_measured(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(logits, labels)


def test_bins_are_checked() -> None:
    with pytest.raises(ValueError, match="bins=0"):
        calibration(*sample(), bins=0)


def test_the_diagram_shows_the_bins() -> None:
    found = calibration(*sample())
    ax = plot_reliability({"one": found, "two": found})
    full = [b for b in found.bins if b.count]
    assert ax.lines[1].get_xdata() == pytest.approx([b.confidence for b in full])
    assert ax.lines[1].get_ydata() == pytest.approx([b.accuracy for b in full])
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"calibrated", "one", "two"}
