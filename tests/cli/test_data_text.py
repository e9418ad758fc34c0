"""What is trained on is said before, and what it is worth after."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from command_line import Cli
from deltasam.cli.data_text import data_line, majority_class_note
from deltasam.lab.data import TextData, load_data
from deltasam.lab.data.summarization import SummaryData
from deltasam.lab.train.provenance import provenance
from deltasam.lab.train.tasks import text


@pytest.fixture
def data(reviews: Path) -> TextData:
    return load_data(reviews, text="review", label="verdict")


def test_rows_and_classes(data: TextData) -> None:
    counts, rows = Counter(data.train["label"]), len(data.train)
    no, yes = (f"{100 * counts[i] / rows:.0f} %" for i in (0, 1))
    assert data_line(data, [16, 8, 16]) == (
        f"{data.name}: 16, 8 training rows of {rows}, {len(data.evaluation)} evaluation rows; "
        f"classes: 'no' {no}, 'yes' {yes}"
    )


def test_many_classes_are_counted_and_scores_have_a_range(data: TextData) -> None:
    many = dataclasses.replace(data, label_names=tuple("abcdefgh"))
    assert data_line(many, [16]).endswith("; 8 classes")
    assert data_line(dataclasses.replace(data, kind="regression"), [16]).endswith("; scores from 0 to 1")


def test_rows_that_measure_memory_and_classes_without_rows_are_named(data: TextData) -> None:
    known = data.train.select([0, 1, 2])
    both = Dataset.from_dict({**data.evaluation[:], "text": [*known["text"], *data.evaluation["text"][3:]]})
    line = data_line(dataclasses.replace(data, evaluation=both), [16])
    assert f"{len(both)} evaluation rows (3 of them with the text of a training row); classes" in line
    only = data.evaluation.filter(lambda row: row["label"] == 0)
    line = data_line(dataclasses.replace(data, evaluation=only), [16])
    assert f"{len(only)} evaluation rows (none of class 'yes'); classes" in line


def test_rows_that_measure_memory_are_recorded(data: TextData) -> None:
    assert "evaluation_rows_in_training" not in provenance(data)
    known = dataclasses.replace(data, evaluation=data.train.select(range(5)))
    assert provenance(known)["evaluation_rows_in_training"] == 5
    summaries = Dataset.from_dict({"text": ["a", "b"], "summary": ["x", "y"], "row": [0, 1]})
    assert provenance(SummaryData("s", summaries, summaries, ""))["evaluation_rows_in_training"] == 2


def test_names_stay_on_the_line(data: TextData) -> None:
    hostile = dataclasses.replace(data, label_names=("a\n\x1b[31mb", "y" * 1000))
    line = data_line(hostile, [16])
    assert line.isprintable()
    assert len(line) < 200


def test_what_one_class_for_every_row_reaches(data: TextData) -> None:
    share = max(Counter(data.evaluation["label"]).values()) / len(data.evaluation)
    assert majority_class_note(data, [share + 0.01]) is None
    assert "It does no better than predicting" in str(majority_class_note(data, [share + 1e-8]))
    assert "1 of 2 runs does no better than predicting" in str(majority_class_note(data, [share, 1.0]))
    assert "2 of 4 runs do no better than predicting" in str(majority_class_note(data, [share, 1.0, None, share - 0.1]))
    assert majority_class_note(dataclasses.replace(data, kind="regression"), [0.0]) is None


def test_train_and_compare_say_both(
    cli: Cli, common: list[str], compare_two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = text.evaluate_all
    monkeypatch.setattr(text, "evaluate_all", lambda *args: {**true(*args), "accuracy": 0.5})
    done = cli("train", *common, "--epochs", "1", "--output", tmp_path / "one")
    assert done.exit_code == 0, done.stderr
    assert "evaluation rows; classes: 'no'" in done.stderr
    assert "It does no better than predicting" in done.stderr
    done = cli(*compare_two, "--epochs", "1", "--output", tmp_path / "two")
    assert "16 training rows of" in done.stderr
    assert "4 of 4 runs do no better than predicting" in done.stderr
    assert "evaluation rows" not in done.stdout


def test_compare_says_and_records_what_is_trained_on_and_measured(
    cli: Cli, compare_two: list[str], reviews: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_text("\n".join(reviews.read_text().splitlines()[:9]) + "\n")
    done = cli(*compare_two, "--epochs", "1", "--eval-data", copy, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "8 evaluation rows (8 of them with the text of a training row)" in done.stderr
    assert "evaluation_rows_in_training: 8" in (tmp_path / "out" / "config.yaml").read_text()


def test_every_page_says_it_too(
    cli: Cli, common: list[str], compare_two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = text.evaluate_all
    monkeypatch.setattr(text, "evaluate_all", lambda *args: {**true(*args), "accuracy": 0.5})
    assert cli(*compare_two, "--epochs", "1", "--output", tmp_path / "two").exit_code == 0
    assert "4 of 4 runs do no better than predicting" in (tmp_path / "two/report.html").read_text()
    (tmp_path / "two/report.html").unlink()
    assert cli("report", tmp_path / "two").exit_code == 0
    assert "4 of 4 runs do no better than predicting" in (tmp_path / "two/report.html").read_text()
    assert cli("train", *common, "--epochs", "1", "--output", tmp_path / "one").exit_code == 0
    assert cli("report", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both.html").exit_code == 0
    both = (tmp_path / "both.html").read_text()
    assert f"<bdi>{tmp_path / 'one'}</bdi>: It does no better than predicting" in both  # at the top
    assert both.count("It does no better than predicting") == 2  # and in its part
