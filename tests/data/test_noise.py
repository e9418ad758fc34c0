from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deltasam.errors import UserError
from deltasam.lab.data import TextData, add_label_noise, load_data
from deltasam.lab.data.noise import with_noisy_selection

ROWS = 500


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Data with some classes, or with scores."""
    folder = tmp_path_factory.mktemp("noise")

    def load(classes: int | None, rows: int = ROWS) -> TextData:
        path = folder / f"{classes}-{rows}.jsonl"
        labels = [n / 7 if classes is None else str(n % classes) for n in range(rows)]
        path.write_text("".join(json.dumps({"text": f"text {n}", "label": x}) + "\n" for n, x in enumerate(labels)))
        held_out = folder / "held_out.jsonl"
        held_out.write_text("".join(json.dumps({"text": f"new {n}", "label": labels[n]}) + "\n" for n in range(10)))
        return load_data(path, eval_data=held_out, task="regression" if classes is None else "classification")

    return load


def flipped(data: TextData) -> dict[int, tuple[float, float]]:
    """Clean and noisy label of every row where they differ."""
    columns = data.train[:]
    rows = zip(columns["row"], columns["clean_label"], columns["label"], strict=True)
    return {row: (clean, noisy) for row, clean, noisy in rows if clean != noisy}


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("rate", [0.002, 0.2, 0.45, 0.999])
def test_exactly_so_many_labels_are_wrong(loaded, classes, rate):
    data = loaded(classes)
    noisy = add_label_noise(data, rate, seed=3)
    assert len(flipped(noisy)) == round(rate * ROWS)
    assert noisy.train["clean_label"][:] == data.train["label"][:]
    assert set(noisy.train["label"]) <= set(range(classes))
    assert noisy.train.features["label"] == noisy.train.features["clean_label"] == data.train.features["label"]
    for column in ("text", "row"):
        assert noisy.train[column][:] == data.train[column][:]


def test_every_other_class_is_as_likely(loaded):
    data = loaded(4, 4000)
    pairs = Counter(flipped(add_label_noise(data, 0.9, seed=0)).values())
    assert len(pairs) == 12
    assert stats.chisquare(list(pairs.values())).pvalue > 0.001


def test_rows_are_chosen_without_regard_to_their_label(loaded):
    data = loaded(4, 4000)
    rows = flipped(add_label_noise(data, 0.3, seed=0))
    assert stats.chisquare(list(Counter(clean for clean, _ in rows.values()).values())).pvalue > 0.001
    assert abs(np.mean(list(rows)) - 2000) < 100


def test_evaluation_labels_are_untouched(loaded):
    data = loaded(3)
    noisy = add_label_noise(data, 0.5, seed=0)
    assert noisy.evaluation[:] == data.evaluation[:]
    assert "clean_label" not in noisy.evaluation.column_names


@pytest.mark.parametrize("classes", [3, None])
def test_none_is_the_data_as_it_is(loaded, classes):
    data = loaded(classes)
    same = add_label_noise(data, 0, seed=5)
    assert same.fingerprint == data.fingerprint
    assert same.train.column_names == data.train.column_names


@pytest.mark.parametrize("classes", [3, None])
def test_seeds_and_rates_have_prints_of_their_own(loaded, classes):
    data = loaded(classes)
    prints = [add_label_noise(data, rate, seed).fingerprint for rate, seed in [(0.2, 0), (0.2, 1), (0.4, 0), (0.2, 0)]]
    assert prints[0] == prints[3]
    assert len({data.fingerprint, *prints}) == 4


@pytest.mark.parametrize("classes", [2, 5])
def test_more_noise_contains_less(loaded, classes):
    data = loaded(classes)
    low, high = (flipped(add_label_noise(data, rate, seed=2)) for rate in (0.1, 0.4))
    assert low.items() < high.items()


def test_scores_are_permuted_among_the_chosen(loaded):
    data = loaded(None)
    noisy = add_label_noise(data, 0.3, seed=1)
    rows = flipped(noisy)
    assert len(rows) == 150  # every score is there once
    assert sorted(noisy.train["label"]) == sorted(data.train["label"])
    clean, wrong = zip(*rows.values(), strict=True)
    assert sorted(clean) == sorted(wrong)
    assert abs(stats.spearmanr(clean, wrong).statistic) < 0.25


@pytest.mark.parametrize("classes", [2, None])
def test_noise_is_not_the_draw_of_the_rows(loaded, classes):
    """With one seed the rows that come first in the draw are not the ones with wrong labels."""
    data = loaded(classes)
    part = set(data.take(250, seed=0).train["row"])
    wrong = set(flipped(add_label_noise(data, 0.5, seed=0)))
    assert 90 < len(part & wrong) < 160


@given(rate=st.floats(0, 1, exclude_max=True), seed=st.integers(-(2**63), 2**63), rows=st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_any_rate_and_seed(loaded, rate, seed, rows):
    data = loaded(2, max(rows, 10))
    wanted = round(rate * len(data.train))
    if rate and not wanted:
        with pytest.raises(UserError, match="changes 0; give"):
            add_label_noise(data, rate, seed)
    else:
        noisy = add_label_noise(data, rate, seed)
        assert (len(flipped(noisy)) if rate else 0) == wanted


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_no_share(loaded, rate):
    with pytest.raises(UserError, match=r"--label-noise .*: give a share of the training labels, from 0 to below 1"):
        add_label_noise(loaded(2), rate, seed=0)


def test_a_rate_that_changes_nothing(loaded):
    with pytest.raises(UserError, match=r"--label-noise 0.0009 of 500 training rows changes 0; give 0.002 or more"):
        add_label_noise(loaded(2), 0.0009, seed=0)
    with pytest.raises(UserError, match=r"--label-noise 0.002 of 500 training rows changes 1; give 0.004 or more"):
        add_label_noise(loaded(None), 0.002, seed=0)


# Rows with wrong labels that choose the epoch.


@pytest.fixture
def wide(loaded) -> TextData:
    """As many rows to evaluate on as to train on."""
    data = loaded(3, 400)
    return data.for_selection(200)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_half_of_the_evaluation_rows_choose(wide: TextData, rate: float) -> None:
    found = with_noisy_selection(wide, rate, 4)
    assert found.selection is not None
    judged, chosen = found.evaluation[:], found.selection[:]
    assert (len(judged["row"]), len(chosen["row"])) == (100, 100)
    assert sorted(judged["row"] + chosen["row"]) == sorted(wide.evaluation["row"])
    labels = dict(zip(wide.evaluation["row"], wide.evaluation["label"], strict=True))
    assert [labels[row] for row in judged["row"]] == list(judged["label"])
    assert sum(labels[row] != label for row, label in zip(chosen["row"], chosen["label"], strict=True)) == 100 * rate
    assert found.train[:] == wide.train[:]
    assert found.fingerprint not in (wide.fingerprint, with_noisy_selection(wide, 0.1, 4).fingerprint)
    assert (found.metric, found.chosen_by) == ("accuracy_selected", "accuracy_selection")
    assert found.reported == ("accuracy_selected", "accuracy")
    assert (wide.metric, wide.chosen_by) == ("accuracy", "accuracy")


def test_seeds_differ_in_the_wrong_labels_only(wide: TextData) -> None:
    one, two = (with_noisy_selection(wide, 0.3, seed) for seed in (0, 1))
    assert one.selection["row"] == two.selection["row"]
    assert list(one.selection["label"]) != list(two.selection["label"])
    assert one.evaluation[:] == two.evaluation[:]
    assert with_noisy_selection(wide, 0.3, 0).fingerprint == one.fingerprint


def test_too_few_rows_to_choose_by(loaded) -> None:
    with pytest.raises(UserError, match=r"evaluation: only one row has label '\d', it cannot choose"):
        with_noisy_selection(loaded(8, 80), 0.0, 0)
