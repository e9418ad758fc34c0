"""Where rows that are set aside choose the epoch, the last one is judged too."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import pytest

from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.formatting import difference_text
from deltasam.lab.compare.statistics.last_epoch import at_last_epoch, last_epoch_sentence
from deltasam.lab.data.setting import Setting
from deltasam.lab.report.page import write_report
from deltasam.lab.train.results import RunResult

CHOSEN = {"erm": [0.50, 0.52, 0.51], "sam": [0.52, 0.50, 0.52]}
LAST = {"erm": [0.40, 0.42, 0.41], "sam": [0.50, 0.525, 0.51]}


def runs(methods: list[str], seeds: int = 3, metric: str = "accuracy_selected") -> list[RunResult]:
    return [
        RunResult(
            method=method,
            seed=seed,
            metric=metric,
            metrics={"accuracy": LAST[method][seed], "accuracy_selected": CHOSEN[method][seed], "loss": 1.0},
            seconds_per_step=0.1,
            peak_memory_mib=None,
        )
        for seed in range(seeds)
        for method in methods
    ]


def test_the_sentence_has_the_differences_of_the_last_epoch() -> None:
    results = runs(["erm", "sam"])
    expected = compare_runs(runs(["erm", "sam"], metric="accuracy")).others[0].difference
    assert expected is not None
    assert expected.estimate.mean == pytest.approx(0.305 / 3)
    sentence = last_epoch_sentence(results)
    said = f"At the last epoch, accuracy minus erm's: sam {difference_text(expected)}, better, p"
    assert sentence.startswith(said)
    assert compare_runs(results).others[0].judgement == "noise"  # at the chosen epoch


def test_nothing_is_said_where_there_is_no_other_epoch() -> None:
    assert at_last_epoch(runs(["erm", "sam"], metric="accuracy")) is None
    assert last_epoch_sentence(runs(["erm", "sam"], metric="accuracy")) == ""
    assert last_epoch_sentence(runs(["erm"])) == ""
    old = runs(["erm", "sam"])
    del old[0].metrics["accuracy"]
    assert last_epoch_sentence(old) == ""


def test_one_seed_is_not_judged() -> None:
    assert "sam +0.10, not judged (95 %" in last_epoch_sentence(runs(["erm", "sam"], seeds=1))


def test_the_page_shows_both(tmp_path: Path) -> None:
    results = runs(["erm", "sam"])
    write_report(results, {}, tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert last_epoch_sentence(results) in page
    assert [re.sub(r"\s+", " ", title) for title in re.findall(r"<h2>(Methods[^<]*)</h2>", page)] == [
        "Methods",
        "Methods at the last epoch",
    ]
    write_report(runs(["erm", "sam"], metric="accuracy"), {}, tmp_path / "page.html")
    assert "last epoch" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_charts_over_the_share_of_wrong_labels_show_both(tmp_path: Path) -> None:
    settings = [Setting(8, noise, noisy_selection=True) for noise in (0.0, 0.3)]
    both = [dataclasses.replace(run, setting=s) for s in settings for run in runs(["erm", "sam"])]
    write_report(both, {}, tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    for title in (
        "accuracy_selected minus erm's, by label noise, 8 training examples",
        "accuracy minus erm's, by label noise, 8 training examples, last epoch",
    ):
        assert f">{title}</h2>" in page
    assert page.count(last_epoch_sentence(runs(["erm", "sam"]))) == 4  # of each setting, in the headline and its part
