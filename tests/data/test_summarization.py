from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from deltasam.errors import UserError
from deltasam.lab.data.sources import hub
from deltasam.lab.data.summarization import load_summaries

SHARED = Path(__file__).parents[3] / "shared" / "data" / "summarization"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")


def lines(*rows: tuple[object, object], columns=("document", "summary")) -> str:
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


ROWS = tuple((f"document {i}", f"summary {i}") for i in range(10))


@pytest.fixture
def complaint():
    def complaint(source, **options) -> str:
        with pytest.raises(UserError) as caught:
            load_summaries(source, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return complaint


@real
@pytest.mark.parametrize(
    ("name", "columns", "sizes"),
    [("xsum", ("document", "summary"), (800, 100)), ("cnn_dailymail", ("article", "highlights"), (160, 40))],
)
def test_real_folders(name, columns, sizes):
    data = load_summaries(SHARED / name)
    assert (data.name, len(data.train), len(data.evaluation)) == (name, *sizes)
    for split, rows in (("train", data.train), ("dev", data.evaluation)):
        with gzip.open(SHARED / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            first = json.loads(next(file))
        assert rows[0] == {"text": first[columns[0]], "summary": first[columns[1]], "row": 0}
    assert any("\n" in summary for summary in data.train["summary"]) == (name == "cnn_dailymail")


def test_a_folder(write):
    folder = write("news/train.jsonl", lines(*ROWS)).parent
    write("news/dev.csv", 'document,summary\n"a\nb","one\ntwo"\n')
    data = load_summaries(folder)
    assert data.evaluation[:] == {"text": ["a\nb"], "summary": ["one\ntwo"], "row": [0]}
    assert {name: values[3] for name, values in data.describe().items()} == {
        "row": 3, "text": "document 3", "label": "summary 3"
    }  # fmt: skip
    assert (data.metric, data.reported) == ("rougeLsum", ("rougeLsum", "rouge1", "rouge2"))


def test_named_columns_of_one_file(write):
    path = write("mine.jsonl", lines(*ROWS, columns=("body", "title")))
    data = load_summaries(path, text="body", summary="title", eval_size=3)
    assert (len(data.train), len(data.evaluation)) == (7, 3)
    assert {*data.train["row"], *data.evaluation["row"]} == set(range(10))


def test_one_named_column_is_enough_where_the_other_is_known(write):
    path = write("mine.jsonl", lines(*((*r, "t") for r in ROWS), columns=("document", "summary", "title")))
    assert set(load_summaries(path, summary="title").train["summary"]) == {"t"}


def test_a_second_file(write, complaint):
    train, dev = write("train.jsonl", lines(*ROWS)), write("other.jsonl", lines(("d", "s")))
    assert load_summaries(train, eval_data=dev).evaluation["text"][:] == ["d"]
    assert "both --data and --eval-data" in complaint(train, eval_data=train)
    assert "no such file" in complaint(train, eval_data=train.parent / "nothing.jsonl")
    assert "--eval-data has no meaning" in complaint(train.parent, eval_data=dev)


def test_smaller_training_sets_are_nested_and_have_their_own_fingerprint(write, complaint):
    data = load_summaries(write("mine.jsonl", lines(*ROWS)), eval_size=2)
    small, large = data.take(3, seed=1), data.take(5, seed=1)
    assert set(small.train["row"]) < set(large.train["row"])
    assert small.evaluation[:] == data.evaluation[:]
    assert len({data.fingerprint, small.fingerprint, large.fingerprint, data.take(3, seed=2).fingerprint}) == 4
    assert data.take(8, seed=0).fingerprint == data.fingerprint
    for size in (0, 9):
        with pytest.raises(UserError, match=f"--train-size {size} is impossible; give from 1 to 8"):
            data.take(size, seed=0)


def test_a_line_that_is_not_json(write, complaint):
    path = write("mine.jsonl", lines(*ROWS[:2]) + '{"document": "cut off\n')
    assert f"{path}, line 3: not JSON" in complaint(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("", "s"), "no text in column 'document'"),
        (("d", None), "no text in column 'summary'"),
        (("d", " \n"), "no text in column 'summary'"),
        (("d", 7), "column 'summary' holds 7, not text; name another column with --summary"),
    ],
)
def test_a_row_without_its_text(write, complaint, row, said):
    path = write("mine.jsonl", lines(*ROWS[:4], row))
    assert f"{path}, line 5: {said}" in complaint(path)


def test_columns_that_are_not_there(write, complaint):
    path = write("mine.jsonl", lines(*ROWS, columns=("document", "title")))
    message = complaint(path)
    assert "no columns 'document' and 'summary' or 'article' and 'highlights'" in message
    assert "--summary; columns: 'document', 'title'" in message
    assert "did you mean --summary 'title'?" in complaint(path, text="document", summary="titel")
    assert "one column is used twice" in complaint(path, text="title", summary="title")


def test_an_evaluation_file_with_other_columns(write, complaint):
    folder = write("news/train.jsonl", lines(*ROWS)).parent
    dev = write("news/dev.jsonl", lines(*ROWS, columns=("article", "highlights")))
    assert f"{dev}: no column 'document'" in complaint(folder)


def test_a_folder_without_evaluation_rows(write, complaint):
    folder = write("news/train.jsonl", lines(*ROWS)).parent
    assert "no dev file" in complaint(folder)


def test_from_the_hub(monkeypatch):
    def load_dataset(name, config):
        assert (name, config) == ("abisee/cnn_dailymail", "3.0.0")
        columns = {"article": ["a", "b"], "highlights": ["x\ny", "z"], "id": ["1", "2"]}
        split = datasets.Dataset.from_dict(columns)
        return {"train": split, "validation": split.select([1]), "test": split.select([0])}

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_summaries("abisee/cnn_dailymail:3.0.0")
    assert data.train[0] == {"text": "a", "summary": "x\ny", "row": 0}
    assert data.evaluation["text"][:] == ["b"]
