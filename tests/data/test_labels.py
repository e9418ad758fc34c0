from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasam.errors import UserError
from deltasam.lab.data import load_data
from deltasam.lab.diagnose.labels import label_indices


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
    path = write("a.csv", csv_rows(["01", "1", " 1", "NA", "None"] * 5))
    with pytest.warns(RuntimeWarning, match="begin or end with a blank"):
        assert load_data(path).label_names == (" 1", "01", "1", "NA", "None")


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


NAMES = [
    ["0E1", "0E2", "1E1", "1E2", "3E5"],
    ["1e400", "2e400"],
    ["10", "1E1"],
    ["9007199254740992", "9007199254740993"],
    ["001", "01", "1"],
    ["0x1A", "0x1B"],
    ["1000", "1_000"],
    ["1", "\u0661"],
    ["+1", "-1", "1"],
    ["-0", "0"],
    ["NA", "None", "inf", "nan"],
    ["1.0", "1.00", "unknown"],
    ["8" * 5000, "9" * 5000],
]


@pytest.mark.parametrize("labels", NAMES, ids=lambda labels: labels[0][:9])
@pytest.mark.parametrize("form", [csv_rows, rows])
def test_labels_that_look_like_numbers_are_names(write, examples, labels, form):
    data = load_data(write("a.csv" if form is csv_rows else "a.jsonl", form(labels * 5)))
    assert sorted(data.label_names) == sorted(labels)
    assert [row["label"] for _, row in sorted(examples(data).items())] == labels * 5


def test_integers_beyond_the_exact_floats_stay_apart(write):
    large = [9007199254740993, 9007199254740992, 2**70, 2**70 + 1]
    for labels in (large, [*large, 5.0]):
        names = sorted((str(label).removesuffix(".0") for label in labels), key=int)
        assert load_data(write("a.jsonl", rows(labels * 5))).label_names == tuple(names)
    pointed = ["9007199254740992.0", "9007199254740993.0", f"{10**400}.0"]
    assert load_data(write("a.csv", csv_rows(pointed * 5))).label_names == tuple(text[:-2] for text in pointed)


@pytest.mark.parametrize("label", [2.0**53, -(2.0**60), 1e20])
@pytest.mark.parametrize("other", [1, "x"])
def test_floats_that_stand_for_several_integers_are_refused(write, complaint, label, other):
    message = complaint(write("a.jsonl", rows([other, label] * 5)))
    assert f"a.jsonl, line 2: label {label} in column 'label' is a floating-point number beyond 2**53" in message
    assert "write the labels as integers or strings" in message


@pytest.mark.parametrize("labels", [["1", "1.0", "2"], ["2.0", "1", "1.0"], ["1.0", "1.00"], ["01.0", "1.0"]])
def test_one_number_in_two_spellings_is_refused(write, complaint, labels):
    message = complaint(write("a.csv", csv_rows(labels * 5)))
    assert "is the same number as" in message
    assert "write it in one way, or give the classes names that are not numbers" in message


def test_numbers_of_json_are_what_they_equal(write):
    assert load_data(write("a.jsonl", rows([1, 1.0, 2, -0.0, 0] * 5))).label_names == ("0", "1", "2")


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(
        st.one_of(
            st.from_regex(r"[-+]?0?[0-3](\.0{0,2})?(E[-+]?[01])?", fullmatch=True, alphabet="0123.E+-"),
            st.sampled_from(["a", "True", "9007199254740993", "9007199254740992", "nan"]),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_no_two_labels_become_one(labels):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_text(csv_rows(labels * 3))
        written = pd.read_csv(path, dtype=str, keep_default_na=False)["label"].tolist()
        held_out = Path(folder) / "b.csv"
        held_out.write_text(csv_rows(labels).replace("text", "other"))
        try:
            data = load_data(path, eval_data=held_out)
        except UserError:
            return
    named = [data.label_names[label] for label in data.train["label"]]
    assert len(set(zip(written, named, strict=True))) == len(set(written)) == len(set(named)) == len(data.label_names)
    assert all(name == text or float(name) == float(text) for text, name in zip(written, named, strict=True))
    assert named[: len(labels)] == [data.label_names[label] for label in data.evaluation["label"]]


@pytest.mark.parametrize(
    ("train", "evaluation", "names"),
    [
        (["1.0", "2.0", "unknown"], ["1.0", "2.0"], ["1.0", "2.0"]),
        (["1E1", "2E1", "A2"], ["1E1", "2E1"], ["1E1", "2E1"]),
        (["1", "2"], ["2.0", "1.0"], ["2", "1"]),
        (["1.0", "2.0"], ["2", "1"], ["2", "1"]),
        (["1.0", "2.0", "x"], [2.0], ["2.0"]),
        ([1.0, 2.0], ["2", "1.0"], ["2", "1"]),
        (["01", "1"], ["01.0", "1.0"], ["01", "1"]),
        (["true", "false"], [True, False], ["true", "false"]),
        ([True, False], ["TRUE", "FALSE"], ["True", "False"]),
        ([9007199254740993, 9007199254740992], ["9007199254740993"], ["9007199254740993"]),
    ],
)
def test_evaluation_labels_are_read_as_the_training_labels(write, train, evaluation, names):
    path, held_out = (
        write(f"{name}.csv", csv_rows(labels)) if isinstance(labels[0], str) else write(f"{name}.jsonl", rows(labels))
        for name, labels in (("a", train * 3), ("b", evaluation))
    )
    data = load_data(path, eval_data=held_out)
    assert [data.label_names[label] for label in data.evaluation["label"]] == names


@pytest.mark.parametrize(
    ("train", "evaluation", "hint"),
    [
        (["1.0", "x"], ["1"], " (the training rows write '1.0' where '1' is written here)"),
        (["01", "02"], ["1"], " (the training rows write '01' where '1' is written here)"),
        (["a", "b"], [" b"], " (the training rows write 'b' where ' b' is written here)"),
        (["Yes", "No"], ["yes"], " (the training rows write 'Yes' where 'yes' is written here)"),
        (["10", "x"], ["1E1"], ""),
        (["9007199254740993", "1"], ["9007199254740992"], ""),
        (["1E1", "x"], ["10"], ""),
    ],
)
def test_other_spellings_are_unknown_and_named(write, complaint, train, evaluation, hint):
    held_out = write("b.csv", csv_rows(evaluation))
    message = complaint(write("a.csv", csv_rows(train * 3)), eval_data=held_out)
    assert f"labels that no training row has: {evaluation[0]!r}{hint}; correct them" in message


def test_blanks_around_a_class_name_are_mentioned(write):
    path = write("a.csv", csv_rows([" pos", " neg"] * 5))
    with pytest.warns(RuntimeWarning, match="begin or end with a blank.*' neg', ' pos'.*skipinitialspace=True"):
        data = load_data(path)
    assert data.label_names == (" neg", " pos")


def parquet(labels: list[int], names: list[str], text: str = "text") -> bytes:
    """What Hugging Face datasets writes."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    columns = {"text": [f"{text} {n}" for n in range(len(labels))], "label": labels}
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(columns, features).to_parquet(buffer)
    return buffer.getvalue()


def test_class_names_in_a_parquet_file_are_used(write, examples):
    path = write("a.parquet", parquet([0, 2, 1] * 5, ["neg", "pos", "abc"]))
    data = load_data(path)
    assert data.label_names == ("neg", "pos", "abc")
    assert [row["label"] for _, row in sorted(examples(data).items())] == ["neg", "abc", "pos"] * 5
    assert load_data(path, task="regression").kind == "regression"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("b.parquet", parquet([0, 1], ["pos", "neg"], "other"), ["pos", "neg"]),
        ("b.csv", csv_rows(["pos", "neg"]), ["pos", "neg"]),
        ("b.csv", csv_rows(["1", "0"]), ["pos", "neg"]),
        ("b.csv", csv_rows(["1.0", "0.0"]), ["pos", "neg"]),
        ("b.jsonl", rows([1, 0]), ["pos", "neg"]),
    ],
)
def test_evaluation_rows_for_class_names_of_a_parquet_file(write, name, content, found):
    data = load_data(write("a.parquet", parquet([0, 1] * 5, ["neg", "pos"])), eval_data=write(name, content))
    assert [data.label_names[label] for label in data.evaluation["label"]] == found


@pytest.mark.parametrize(("train", "found"), [(["neg", "pos"], ["pos", "neg"]), (["0", "1"], ["1", "0"])])
def test_evaluation_rows_with_class_names_for_other_files(write, train, found):
    held_out = write("b.parquet", parquet([1, 0], ["neg", "pos"]))
    data = load_data(write("a.csv", csv_rows(train * 5)), eval_data=held_out)
    assert [data.label_names[label] for label in data.evaluation["label"]] == found


@pytest.mark.parametrize(("labels", "found"), [(["1", "5"], ["1", "5"]), (["1", "0"], ["2", "1"]), (["1", "2"], None)])
def test_names_that_could_be_indices(write, complaint, labels, found):
    path, held_out = (
        write("a.parquet", parquet([0, 1, 4] * 5, ["1", "2", "3", "4", "5"])),
        write("b.csv", csv_rows(labels)),
    )
    if found is None:
        message = complaint(path, eval_data=held_out)
        assert "label '1' in column 'label' is the name of a class, and the index of '2'; give both files in" in message
    else:
        data = load_data(path, eval_data=held_out)
        assert [data.label_names[label] for label in data.evaluation["label"]] == found


def test_class_indices_without_a_name(write, complaint):
    path = write("a.parquet", parquet([0, 1, -1], ["neg", "pos"]))
    assert "a.parquet, row 3: label '-1' in column 'label' is none of 0 neg, 1 pos" in complaint(path)
    named = write("b.parquet", parquet([0, 1], ["neg", "other"]))
    message = complaint(write("a.parquet", parquet([0, 1] * 5, ["neg", "pos"])), eval_data=named)
    assert "labels that no training row has: 'other'" in message


def test_class_names_that_cannot_be_read(tmp_path, complaint):
    for metadata in ("{", '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', "[]"):
        table = pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, tmp_path / "a.parquet")
        assert "its 'huggingface' metadata, which says what class indices mean, cannot" in complaint(
            tmp_path / "a.parquet"
        )


def test_a_model_that_was_trained_beside_other_names_knows_its_numbers(write):
    data = load_data(write("a.csv", csv_rows(["1.0", "2.0"] * 5)))
    trained = SimpleNamespace(id2label={0: "unknown", 1: "2.0", 2: "1.0"})
    assert label_indices("out", trained, data) == [2, 1]
    with pytest.raises(UserError, match="the data has '1'"):
        label_indices("out", SimpleNamespace(id2label={0: "01", 1: "2", 2: "1.0"}), data)
