from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from deltasam.lab.data import load_data

SHARED = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")

METRICS = {"cola": "matthews", "stsb": "spearman", "mrpc": "f1", "qqp": "f1"}
NAMES = {
    "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("not_paraphrase", "paraphrase"),
    "qqp": ("not_duplicate", "duplicate"),
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "stsb": (),
}


def published(task: str, split: str) -> tuple[int, dict[int, int]]:
    """The number of rows and of each label, from the table in the data's README."""
    readme = (SHARED / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"\| `glue/{task}/{split}\.jsonl\.gz` \| (\d+)[^|]*\|[^|]*\|([^|]*)\|", readme)
    counts = re.findall(r"(\d): (\d+)", row[2])
    return int(row[1]), {int(label): int(count) for label, count in counts}


@real
@pytest.mark.parametrize("task", sorted(NAMES))
def test_real_glue(task):
    data = load_data(SHARED / "glue" / task)
    assert data.name == f"glue/{task}"
    assert data.metric == METRICS.get(task, "accuracy")
    assert data.label_names == NAMES[task]
    assert data.has_pairs == (task not in ("cola", "sst2"))
    for split, rows in (("train", data.train), ("dev", data.evaluation)):
        total, counts = published(task, split)
        assert len(rows) == total
        assert not counts or dict(Counter(rows["label"])) == counts
        with gzip.open(SHARED / "glue" / task / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            first = json.loads(next(lines))
        texts = [value for value in first.values() if isinstance(value, str)][: 1 + data.has_pairs]
        assert [rows[0][column] for column in ("text", "text_pair")[: 1 + data.has_pairs]] == texts
        assert rows[0]["label"] == first["label"]


@real
def test_real_classes_are_named_in_the_right_order():
    """Sentences that anyone can judge."""
    data = load_data(SHARED / "glue" / "sst2")
    label = dict(zip(data.evaluation["text"], data.evaluation["label"], strict=True))
    assert data.label_names[label["it 's a charming and often affecting journey . "]] == "positive"
    assert data.label_names[label["unflinchingly bleak and desperate "]] == "negative"


@real
def test_real_scores_have_their_whole_range():
    scores = load_data(SHARED / "glue" / "stsb").train["label"]
    assert (min(scores), max(scores)) == (0.0, 5.0)


@real
def test_real_scores_by_named_columns():
    options = {"text": "sentence1", "text_pair": "sentence2", "task": "regression"}
    data = load_data(SHARED / "sts" / "sickr", **options)
    assert (data.name, len(data.train), len(data.evaluation)) == ("sickr", 4500, 500)
    assert (data.train[0]["label"], data.metric) == (4.5, "spearman")
    file = load_data(SHARED / "sts" / "sts12" / "test.jsonl.gz", **options)
    assert len(file.train) + len(file.evaluation) == 3108


OFFICIAL = {
    "CoLA": ("gj04\t1\t\tA sails.\ngj04\t0\t*\tSails a.\n", "A sails.", None, [1, 0]),
    "SST-2": ('sentence\tlabel\n"a " b \t1\nbad \t0\n', '"a " b ', None, [1, 0]),
    "MRPC": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t" a .\tb .\n0\t7\t8\tc\td\n',
        '" a .',
        "b .",
        [1, 0],
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tm\tf\t2012\t1\tn\tn\ta\tb\t5.000\n1\tm\tf\t2012\t1\tn\tn\tc\td\t0.250\n",
        "a",
        "b",
        [5.0, 0.25],
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n4\t5\t6\tc\td\t1\n",
        "a",
        "b",
        [0, 1],
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n", "a", "b", [1, 0]),
    "RTE": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n", "a", "b", [1, 0]),
    "WNLI": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\tc\td\t0\n", "a", "b", [1, 0]),
    "MNLI": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tneutral\n1\tc\td\tneutral\tcontradiction\n",
        "a",
        "b",
        [1, 2],
    ),
}


@pytest.mark.parametrize("task", OFFICIAL)
def test_official_tsv_layout(write, task):
    content, text, pair, labels = OFFICIAL[task]
    dev = "dev_matched" if task == "MNLI" else "dev"
    folder = write(f"{task}/train.tsv", content).parent
    write(f"{task}/{dev}.tsv", content)
    if task == "MNLI":
        write("MNLI/dev_mismatched.tsv", content.replace("\ta\t", "\tother\t"))
    data = load_data(folder)
    assert data.train["label"][:] == data.evaluation["label"][:] == labels
    assert data.train[0]["text"] == data.evaluation[0]["text"] == text
    assert data.train[0].get("text_pair") == pair
    assert data.label_names == NAMES[task.lower().replace("-", "")]


def test_cola_with_a_header(write):
    folder = write("cola/train.tsv", "sentence\tlabel\nx\t1\ny\t0\n").parent
    write("cola/dev.tsv", "sentence\tlabel\nz\t1\n")
    data = load_data(folder)
    assert (data.train["text"][:], data.train["label"][:]) == (["x", "y"], [1, 0])


def test_mixed_suffixes_and_gzip(write):
    folder = write("sst2/train.csv.gz", gzip.compress(b"sentence,label\nx,1\ny,0\n")).parent
    write("sst2/dev.jsonl", '{"sentence": "z", "label": "positive"}\n')
    assert load_data(folder).evaluation[:] == {"text": ["z"], "label": [1], "row": [0]}


def test_unknown_name_with_named_columns(write, csv_text):
    folder = write("mine/train.csv", csv_text).parent
    write("mine/dev.csv", "text,label\nx,b\n")
    data = load_data(folder)
    assert (data.name, data.label_names, len(data.train), len(data.evaluation)) == ("mine", ("a", "b"), 20, 1)


def test_a_folder_of_something_else(write, complaint, csv_text, tmp_path):
    write("mine/data.csv", csv_text)
    message = complaint(tmp_path / "mine")
    assert "not a folder in GLUE layout, no train file" in message
    write("mine/train.csv", csv_text)
    assert "no dev file" in complaint(tmp_path / "mine")


def test_two_files_for_one_split(write, complaint, csv_text):
    folder = write("mine/train.csv", csv_text).parent
    write("mine/train.tsv", csv_text)
    assert "both train.csv and train.tsv; keep one" in complaint(folder)


def test_unlabelled_official_test_rows(write, complaint):
    folder = write("rte/train.jsonl", '{"sentence1": "x", "sentence2": "y", "label": -1}\n').parent
    write("rte/dev.jsonl", '{"sentence1": "x", "sentence2": "y", "label": 0}\n')
    message = complaint(folder)
    assert "line 1: label '-1' in column 'label' is none of 0 entailment, 1 not_entailment" in message


def test_a_glue_file_without_its_columns(write, complaint):
    folder = write("rte/train.csv", "sentence1,sentence3,label\nx,y,0\n").parent
    write("rte/dev.csv", "sentence1,sentence3,label\nx,y,0\n")
    assert "no column 'sentence2'" in complaint(folder)


def test_a_glue_folder_that_disagrees_with_the_task(write, complaint):
    folder = write("rte/train.csv", "sentence1,sentence2,label\nx,y,0\n").parent
    write("rte/dev.csv", "sentence1,sentence2,label\nx,y,0\n")
    assert "leave out --task regression" in complaint(folder, task="regression")
    assert "--eval-data has no meaning" in complaint(folder, eval_data="x.csv")
