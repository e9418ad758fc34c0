"""The published data sets, where they are at hand: what is read is what was published."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from deltasam.data import load_glue
from deltasam.data.sts import available_sets, load_sts
from deltasam.data.summarization import load_summaries

DATA = Path(os.environ.get("DELTASAM_TEST_DATA", Path(__file__).parents[3] / "shared/data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "glue").is_dir(), reason="no real data; DELTASAM_TEST_DATA names the folder with glue/, sts/, ..."
)

# Rows of training and development set, and how often the first class is right in the latter.
GLUE = {
    "cola": (8551, 1043, 322),
    "sst2": (67349, 872, 428),
    "mrpc": (3668, 408, 129),
    "qqp": (23497, 2000, 1303),
    "mnli": (9999, 9815, 3479),
    "qnli": (9999, 5463, 2702),
    "rte": (2490, 277, 146),
    "wnli": (635, 71, 40),
}
STS = {"sts12": 3108, "sts13": 1500, "sts15": 3000, "sickr/train": 4500, "sickr/dev": 500, "stsb/dev": 1500}


@pytest.mark.parametrize("task", GLUE)
def test_classes(task: str) -> None:
    data = load_glue(task, DATA / "glue")
    assert (len(data.train), len(data.evaluation), Counter(data.evaluation["label"])[0]) == GLUE[task]
    assert all(text.strip() for text in data.evaluation["text"])


def test_scores() -> None:
    data = load_glue("stsb", DATA / "glue")
    assert (len(data.train), len(data.evaluation), data.reported) == (5749, 1500, ("spearman", "pearson"))
    assert (min(data.train["label"]), max(data.train["label"])) == (0.0, 5.0)


def test_classes_are_named_in_the_right_order() -> None:
    """Sentences that anyone can judge."""
    data = load_glue("sst2", DATA / "glue")
    label = dict(zip(data.evaluation["text"], data.evaluation["label"], strict=True))
    assert data.label_names[label["it 's a charming and often affecting journey . "]] == "positive"
    assert data.label_names[label["unflinchingly bleak and desperate "]] == "negative"


def test_similarity_sets() -> None:
    assert set(available_sets(DATA)) >= STS.keys() - {"stsb/dev"}
    data = load_sts(DATA, sets=[name for name in STS if name != "stsb/dev"])
    assert {name: len(pairs) for name, pairs in data.evaluation.items()} == {
        name.replace("/", "_"): rows for name, rows in STS.items() if name != "stsb/dev"
    }
    assert data.selection is not None
    assert len(data.selection) == STS["stsb/dev"]
    assert len(set(data.train)) == len(data.train) > 10_000


@pytest.mark.parametrize(("name", "train", "dev"), [("xsum", 800, 100), ("cnn_dailymail", 160, 40)])
def test_summaries(name: str, train: int, dev: int) -> None:
    data = load_summaries(DATA / "summarization" / name)
    assert (len(data.train), len(data.evaluation)) == (train, dev)
    words = [sum(len(text.split()) for text in data.evaluation[column]) / dev for column in ("text", "summary")]
    assert words[0] > 5 * words[1] > 0
