from __future__ import annotations

import json

import pandas as pd
import pytest

from deltasam.data import load_data


def rows(labels: list[object]) -> str:
    return "\n".join(json.dumps({"text": f"text {n}", "label": label}) for n, label in enumerate(labels))


def csv_rows(labels: list[str]) -> str:
    return "text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(labels))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "C"], ("C", "a", "b")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9", "01"], ("01", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        ([True, False], ("False", "True")),
        ([1.0, 0.0, 2.0], ("0", "1", "2")),
        (["1.5", "2", "high"], ("1.5", "2", "high")),
    ],
)
def test_class_names_and_their_order(write, examples, labels, names):
    data = load_data(write("a.jsonl", rows(labels * 5)))
    assert data.label_names == names
    assert (data.kind, data.metric) == ("classification", "accuracy")
    plain = [str(int(label)) if isinstance(label, float) else str(label) for label in labels * 5]
    assert [row["label"] for _, row in sorted(examples(data).items())] == plain


@pytest.mark.parametrize("labels", [["a", "b", "c"], list(range(30))])
def test_labels_that_occur_once_are_no_classes(write, complaint, labels):
    message = complaint(write("a.jsonl", rows(labels)))
    assert "a.jsonl: every label in column 'label' occurs once, so it is probably the wrong column" in message
    assert "--label" in message
    assert "--task regression" in message
    assert load_data(write("a.jsonl", rows([0.5, 1.5, 2.5] * 3)), task="regression").kind == "regression"


@pytest.mark.parametrize("labels", [["0.0", "1.0"], ["0", "1.0"], ["0", "1"]])
def test_whole_floats_in_csv_are_integers(write, labels):
    assert load_data(write("a.csv", csv_rows(labels * 5))).label_names == ("0", "1")


def test_labels_in_csv_stay_as_written(write):
    assert load_data(write("a.csv", csv_rows(["01", "1", " 1", "NA", "None"] * 5))).label_names == (
        (" 1", "01", "1", "NA", "None")
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("missing", [None, float("nan"), "", " "])
def test_missing_label(write, complaint, task, missing):
    message = complaint(write("a.jsonl", rows([0, 1, missing, 1, missing])), task=task)
    assert "a.jsonl, line 3: no label in column 'label' (2 rows have none)" in message


def test_missing_label_in_csv_and_parquet(write, complaint, tmp_path):
    assert "a.csv, line 3: no label" in complaint(write("a.csv", csv_rows(["a", "", "b"])))
    pd.DataFrame({"text": ["x", "y"], "label": ["a", None]}).to_parquet(tmp_path / "a.parquet")
    assert "a.parquet, row 2: no label" in complaint(tmp_path / "a.parquet")


@pytest.mark.parametrize("label", ["0.37", "1e-1", ".5", "1e999"])
def test_fractions_are_no_classes(write, complaint, label):
    message = complaint(write("a.csv", csv_rows(["0.0", "1.0", label])))
    assert f"a.csv, line 4: label {label} in column 'label' is not a class" in message
    assert "--task regression" in message


def test_fractions_are_no_classes_in_json(write, complaint):
    assert "line 2: label 0.37" in complaint(write("a.jsonl", rows([1, 0.37])))
    assert "line 2: label inf" in complaint(write("a.jsonl", rows([1, float("inf")])))


def test_labels_must_be_plain_values(write, complaint):
    assert "line 2: label 'label' is ['b'], not a plain value" in complaint(write("a.jsonl", rows(["a", ["b"]])))


@pytest.mark.parametrize("labels", [["a"] * 5, ["a"]])
def test_one_class_only(write, complaint, labels):
    assert "every label is 'a'" in complaint(write("a.csv", csv_rows(labels)))


def test_labels_that_only_evaluation_has(write, complaint):
    path, held_out = write("a.csv", csv_rows(["a", "b"])), write("b.csv", csv_rows(["a", "d", "c", "d"]))
    assert "b.csv: labels that no training row has: 'c', 'd'" in complaint(path, eval_data=held_out)


def test_many_unknown_labels_are_not_all_listed(write, complaint):
    held_out = write("b.csv", csv_rows([str(n) for n in range(100)]))
    message = complaint(write("a.csv", csv_rows(["a", "b"])), eval_data=held_out)
    assert "'0', '1', '2', '3', '4' and 95 more" in message


@pytest.mark.parametrize("integers", [True, False])
def test_regression(write, examples, integers):
    scores = [n if integers else n / 4 for n in range(20)]
    data = load_data(write("a.jsonl", rows(scores)), task="regression")
    assert (data.kind, data.metric, data.label_names) == ("regression", "spearman", ())
    assert data.train.features["label"].dtype == "float64"
    assert [row["label"] for _, row in sorted(examples(data).items())] == scores


def test_regression_from_csv(write, examples):
    data = load_data(write("a.csv", csv_rows(["1", "-2.5", " 3e-1", "+4", ".5"] * 4)), task="regression")
    assert [row["label"] for _, row in sorted(examples(data).items())] == [1.0, -2.5, 0.3, 4.0, 0.5] * 4


@pytest.mark.parametrize("label", ["high", "inf", "-inf", "nan", "1_0", "1,5", True, float("inf"), "1e999", 10**400])
def test_no_number_for_regression(write, complaint, label):
    message = complaint(write("a.jsonl", rows([0.5, 1.0, label])), task="regression")
    assert "line 3: label " in message
    assert "is not a finite number" in message


def test_constant_scores(write, complaint):
    assert "every label is 2.0" in complaint(write("a.csv", csv_rows(["2"] * 9)), task="regression")
    held_out = write("b.csv", csv_rows(["3"] * 4))
    message = complaint(write("a.csv", csv_rows(["1", "2"])), task="regression", eval_data=held_out)
    assert "every evaluation row has the score 3, so spearman is undefined" in message


def test_unknown_task(write, complaint, csv_text):
    assert "--task ranking: unknown; give classification or regression" in complaint(
        write("a.csv", csv_text), task="ranking"
    )
