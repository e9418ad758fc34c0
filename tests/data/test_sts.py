from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltasam.errors import UserError
from deltasam.lab.data.sentences import Contrast, ScoredPairs, SentenceData
from deltasam.lab.data.sts import STANDARD_SETS, available_sets, load_sts, read_pairs, read_sentences

SHARED = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")

PAIRS = [("a b", "c", 1.5), ("c", "d", 0.0), ("e", "a b", 5)]


def lines(pairs: list[tuple[str, str, float]], **more: object) -> str:
    return "".join(json.dumps({"sentence1": a, "sentence2": b, "label": s, **more}) + "\n" for a, b, s in pairs)


@pytest.fixture
def folder(write: Callable[..., Path], tmp_path: Path) -> Path:
    """Two years, one of them compressed, and STS-B with everything."""
    write("sts/sts12/test.jsonl", lines(PAIRS, subset="x"))
    write("sts/sts13/test.jsonl.gz", gzip.compress(lines([*PAIRS[:2], ("f", "g", 3)]).encode()))
    for split in ("train", "dev", "test"):
        write(f"glue/stsb/{split}.jsonl", lines([(f"{split} {a}", b, s) for a, b, s in PAIRS]))
    return tmp_path


def refused(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_what_is_asked_for(folder: Path) -> None:
    data = load_sts(folder, sets=["sts13", "stsb"])
    assert data.train == ("train a b", "c", "train c", "d", "train e", "a b")
    assert list(data.evaluation) == ["sts13", "stsb"]
    assert data.evaluation["sts13"] == ScoredPairs(("a b", "c", "f"), ("c", "d", "g"), (1.5, 0.0, 3.0))
    assert data.selection is not None
    assert data.selection.first == ("dev a b", "dev c", "dev e")
    assert data.metric == "spearman"
    assert data.contrast == Contrast(temperature=0.04, masked_characters=5, pooling="mean")


def test_a_split_has_a_metric_of_its_own(folder: Path) -> None:
    assert list(load_sts(folder, sets=["stsb/dev"], selection=None).evaluation) == ["stsb_dev"]


def test_lists_what_is_missing_and_what_is_there(folder: Path) -> None:
    message = refused(load_sts, folder)
    assert "no file of sts14, sts15, sts16, sickr (sts/sts14/test.* is looked for)" in message
    assert message.endswith("ask for sets that are there: sts12, sts13, stsb/dev, stsb, stsb/train")


def test_a_folder_without_sets(tmp_path: Path) -> None:
    assert "there is none" in refused(load_sts, tmp_path)
    assert "no such folder" in refused(load_sts, tmp_path / "nowhere")


def test_two_files_of_one_set(folder: Path, write: Callable[..., Path]) -> None:
    write("sts/sts12/test.csv", "sentence1,sentence2,label\na,b,1\nc,d,2\n")
    assert "keep one of them" in refused(load_sts, folder, sets=["sts12"])


def test_no_choosing_on_what_is_reported(folder: Path) -> None:
    assert "both reported and selected on" in refused(load_sts, folder, sets=["sts12", "stsb/dev"])


def test_damage_is_named_with_file_and_line(folder: Path, write: Callable[..., Path]) -> None:
    good = lines(PAIRS)
    for damage, said in [
        ("{broken", "line 4: not JSON"),
        ('{"sentence1": "a", "sentence2": "b"}', "line 4: no label"),
        ('{"sentence1": "a", "sentence2": "b", "label": "high"}', "line 4: label 'high'"),
        ('{"sentence1": "a", "sentence2": "b", "label": NaN}', "line 4: no label"),
        ('{"sentence1": " ", "sentence2": "b", "label": 1}', "line 4: no text in column 'sentence1'"),
        ('{"sentence1": "a", "sentence2": 7, "label": 1}', "line 4: column 'sentence2' holds 7"),
    ]:
        path = write("sts/sts12/test.jsonl", good + damage + "\n")
        assert refused(load_sts, folder, sets=["sts12"]).startswith(f"{path}, {said}"), damage
    path = write("sts/sts12/test.jsonl", '{"text": "a", "label": 1}\n')
    assert refused(read_pairs, path).startswith(f"{path}: no column 'sentence1'")
    path = write("sts/sts12/test.jsonl", lines([("a", "b", 3), ("c", "d", 3)]))
    assert "every pair has the score 3" in refused(read_pairs, path)


def test_sentences_of_a_text_file(write: Callable[..., Path]) -> None:
    assert read_sentences(write("wiki.txt", "one, two\r\n\nthree\none, two\n four \n")) == (
        "one, two",
        "three",
        " four ",
    )
    assert read_sentences(write("wiki.txt.gz", gzip.compress(b"one\ntwo\n"))) == ("one", "two")
    assert "line 2: byte" in refused(read_sentences, write("latin.txt", b"one\nd\xe9j\xe0\n"))
    assert "1 different sentences" in refused(read_sentences, write("one.txt", "one\none\n"))


def test_labels_cannot_get_into_training(folder: Path, write: Callable[..., Path]) -> None:
    """Damaged labels of a training file are not even seen; other labels change nothing."""
    before = load_sts(folder, sets=["sts12"])
    write("glue/stsb/train.jsonl", lines([(f"train {a}", b, "?") for a, b, _ in PAIRS]))
    assert load_sts(folder, sets=["sts12"]).fingerprint == before.fingerprint


def test_the_fingerprint_is_of_all_that_matters(folder: Path, write: Callable[..., Path]) -> None:
    def print_of(**options: object) -> str:
        return load_sts(folder, **{"sets": ["sts12"], **options}).fingerprint

    same = print_of()
    assert print_of() == same
    text = write("own.txt", "one\ntwo\n")
    prints = {same, print_of(sets=["sts13"]), print_of(selection=None), print_of(sentences=text)}
    prints |= {print_of(contrast=Contrast(temperature=0.05)), print_of(contrast=Contrast(masked_characters=0))}
    assert len(prints) == 6
    write("sts/sts12/test.jsonl", lines([*PAIRS[:2], ("e", "a b", 4)]))
    assert print_of() not in prints


def test_takes_a_part() -> None:
    data = SentenceData("x", tuple(f"s{i}" for i in range(50)), {})
    part, smaller = data.take(20, 3), data.take(5, 3)
    assert len(part.train) == 20
    assert set(smaller.train) < set(part.train) < set(data.train)
    assert list(part.train) == sorted(part.train, key=lambda s: int(s[1:]))
    assert data.take(20, 4).train != part.train
    assert len({data.fingerprint, part.fingerprint, smaller.fingerprint}) == 3
    for size in (1, 51):
        assert f"--train-size {size} is impossible; give from 2" in refused(data.take, size, 0)


def test_evaluates_on_fewer_pairs(folder: Path) -> None:
    whole = load_sts(folder, sets=["sts12", "sts13"])
    some = load_sts(folder, sets=["sts12", "sts13"], most_pairs=2)
    assert some.train == whole.train
    assert [len(pairs) for pairs in some.evaluation.values()] == [2, 2]
    rows = zip(*dataclasses.astuple(whole.evaluation["sts13"]), strict=True)
    assert set(zip(*dataclasses.astuple(some.evaluation["sts13"]), strict=True)) < set(rows)
    assert some.fingerprint != whole.fingerprint
    assert load_sts(folder, sets=["sts12", "sts13"], most_pairs=9) == whole
    assert "a correlation needs 2 or more" in refused(load_sts, folder, sets=["sts12"], most_pairs=1)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"masked_characters": -1}, {"pooling": "max"}])
def test_a_contrast_that_cannot_be(wrong: dict[str, object]) -> None:
    assert str(*wrong.values()) in refused(Contrast, **wrong)


@real
def test_real_sets() -> None:
    there = available_sets(SHARED)
    years = [name for name in there if name in STANDARD_SETS]
    data = load_sts(SHARED, sets=years)
    sizes = {"sts12": 3108, "sts13": 1500, "sts14": 3750, "sts15": 3000, "sts16": 1186, "stsb": 1379, "sickr": 4927}
    assert {name: len(pairs) for name, pairs in data.evaluation.items()} == {name: sizes[name] for name in years}
    assert data.selection is not None
    assert len(data.selection) == 1500
    assert len(data.train) == 10536
    smaller = load_sts(SHARED, sets=["sts12"], most_pairs=300)
    order = {pair: i for i, pair in enumerate(zip(*dataclasses.astuple(data.evaluation["sts12"]), strict=True))}
    kept = [order[pair] for pair in zip(*dataclasses.astuple(smaller.evaluation["sts12"]), strict=True)]
    assert len(kept) == 300
    assert max(kept) > 2800  # of all subsets, not of the first
    absent = [name for name in STANDARD_SETS if name not in years]
    if absent:
        assert f"no file of {', '.join(absent)} (" in refused(load_sts, SHARED)
