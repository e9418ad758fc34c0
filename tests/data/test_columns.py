from __future__ import annotations

import json

import pandas as pd
import pytest

from deltasam.lab.data import load_data


def test_missing_column_lists_those_there_are(write, complaint, csv_text):
    message = complaint(write("a.csv", csv_text), text="review")
    assert "no column 'review'; name it with --text. Columns: 'text', 'label'" in message


@pytest.mark.parametrize("asked", ["LABEL", "lable"])
def test_missing_column_suggests_the_nearest(write, complaint, csv_text, asked):
    assert "did you mean --label 'label'?" in complaint(write("a.csv", csv_text), label=asked)


def test_missing_pair_column(write, complaint, csv_text):
    assert "no column 'txet'; did you mean --text-pair 'text'?" in complaint(write("a.csv", csv_text), text_pair="txet")


def test_column_missing_from_the_evaluation_file_only(write, complaint, csv_text):
    held_out = write("b.csv", "text,class\nx,a\ny,b\n")
    assert "b.csv: no column 'label'" in complaint(write("a.csv", csv_text), eval_data=held_out)


@pytest.mark.parametrize("header", ["tweet,label", "text,sentence,label"])
def test_the_text_column_is_not_guessed(write, complaint, header):
    row = ",".join("xyz"[: header.count(",") + 1])
    message = complaint(write("a.csv", f"{header}\n{row}\n"))
    assert "which column is the text? Name it with --text" in message
    assert "'label'" in message


def test_a_sentence_column_is_text(write, csv_text):
    data = load_data(write("a.csv", csv_text.replace("text,", "sentence,")))
    assert {"text 0", "text 1"} <= {*data.train["text"], *data.evaluation["text"]}
    assert not data.has_pairs


@pytest.mark.parametrize("options", [{"text": "text", "label": "text"}, {"text_pair": "text"}, {"text_pair": "label"}])
def test_one_column_used_twice(write, complaint, csv_text, options):
    assert "one column is used twice" in complaint(write("a.csv", csv_text), **options)


@pytest.mark.parametrize("blank", ["", "   ", '"\n"'])
def test_blank_text_in_csv(write, complaint, csv_text, blank):
    lines = csv_text.splitlines()
    lines[4], lines[7] = f"{blank},a", f"{blank},b"
    message = complaint(write("a.csv", "\n".join(lines)))
    assert "a.csv, line 5: no text in column 'text' (2 rows are so)" in message


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_missing_text_in_json(write, complaint, missing):
    rows = [{"text": "x", "label": 0}, {"text": missing, "label": 1}, {"text": "y", "label": 1}]
    message = complaint(write("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert "a.jsonl, line 2: no text in column 'text' (1 row is so)" in message


def test_missing_text_in_parquet(tmp_path, complaint):
    pd.DataFrame({"text": ["x", None], "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    assert "a.parquet, row 2: no text" in complaint(tmp_path / "a.parquet")


def test_blank_second_text(write, complaint):
    path = write("a.csv", "text,other,label\nx,y,a\nx,,b\n")
    assert "line 3: no text in column 'other'" in complaint(path, text_pair="other")


def test_text_that_is_no_text(write, complaint):
    path = write("a.jsonl", '{"text": "x", "label": 0}\n{"text": 12, "label": 1}\n')
    assert "line 2: column 'text' holds 12, not text" in complaint(path)


def test_half_a_surrogate_pair(write, complaint):
    path = write("a.jsonl", '{"text": "x", "label": 0}\n{"text": "\\ud83d", "label": 1}\n')
    assert "line 2: column 'text' holds half of a surrogate pair" in complaint(path)


@pytest.mark.parametrize(("header", "option"), [("text, label", "--label ' label'"), ("label, text", "--text ' text'")])
def test_blanks_after_commas_of_the_header_are_named(write, complaint, header, option):
    path = write("a.csv", f"{header}\n" + "".join(f"x{row}, y{row}\n" for row in range(4)))
    message = complaint(path)
    assert (
        f"the blanks beside delimiters belong to names and values; name it so, {option}, or remove the blanks"
        in message
    )
    assert 'skipinitialspace=True))" < a.csv > without_blanks.csv' in message
