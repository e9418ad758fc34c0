"""Which runs belong together, what is missing, and what is no run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltasam.errors import UserError
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.contents import read_folders
from deltasam.lab.train.results import RunResult
from deltasam.spec import full_spec

ROOT = Path(__file__).parents[2]
SAM = full_spec("sam")


def result(method: str, seed: int, setting: Setting | None = None, value: float = 0.8) -> RunResult:
    return RunResult(method, seed, "accuracy", {"accuracy": value, "loss": 0.4}, 0.1, None, setting=setting)


def compare_folder(folder: Path, results: list[RunResult], **options: Any) -> Path:
    folder.mkdir()
    default = {"methods": ["erm", SAM], "seeds": [0, 1], "train_size": 16, "label_noise": None}
    (folder / "config.yaml").write_text(yaml.safe_dump({**default, **options}))
    (folder / "results.jsonl").write_text("".join(run.to_json() + "\n" for run in results))
    return folder


def train_folder(folder: Path, method: str, seed: int, sha: str = "a", finished: bool = True, **options: Any) -> Path:
    folder.mkdir()
    default = {"data": "reviews.csv", "model": "minilm", "learning_rate": 2e-5, "label_noise": None}
    provenance = {"data_sha256": sha, "torch": "2.13"}
    chosen = {**default, **options, "method": method, "seed": seed, "provenance": provenance}
    (folder / "config.yaml").write_text(yaml.safe_dump(chosen))
    if finished:
        (folder / "history.json").write_text(result(method, seed).to_json() + "\n")
    return folder


def held(folders: list[Path]) -> list[list[tuple[str, int]]]:
    """Method and seed of the runs of each comparison."""
    return [[(run.method, run.seed) for run in g.results] for g in read_folders(folders).groups]


def test_a_finished_comparison_is_whole(tmp_path: Path) -> None:
    runs = [result(method, seed, Setting(16)) for seed in (0, 1) for method in ("erm", SAM)]
    found = read_folders([compare_folder(tmp_path / "a", runs)])
    assert found.whole
    assert found.notes == []
    (comparison,) = found.groups
    assert comparison.name == str(tmp_path / "a")
    assert comparison.missing == {}
    assert [run.method for run in comparison.results] == ["erm", "sam", "erm", "sam"]  # short specs


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    found = read_folders([compare_folder(tmp_path / "a", [result("erm", 0), result(SAM, 0), result("erm", 1)])])
    (comparison,) = found.groups
    assert not found.whole
    assert comparison.missing == {"sam": [1]}
    assert comparison.missing_note.startswith("Not finished: 1 of 4 runs are missing (sam with seed 1).")


def test_runs_that_were_not_asked_for_stay_out(tmp_path: Path) -> None:
    runs = [result("erm", 0), result(SAM, 0), result("erm", 7), result("asam:rho=1.0,eta=0.01", 0)]
    assert held([compare_folder(tmp_path / "a", runs, seeds=[0])]) == [[("erm", 0), ("sam", 0)]]


def test_each_setting_is_a_comparison(tmp_path: Path) -> None:
    runs = [result(method, 0, Setting(16, noise)) for noise in (0.0, 0.2) for method in ("erm", SAM)]
    found = read_folders([compare_folder(tmp_path / "a", runs, seeds=[0], label_noise=[0.0, 0.2, 0.4])])
    assert [g.name.partition(": ")[2] for g in found.groups] == [Setting(16).title, Setting(16, 0.2).title]
    assert found.notes == [f"{tmp_path / 'a'}: no run is finished yet in 1 of its settings"]
    assert not found.whole


def test_trainings_that_differ_in_method_and_seed_alone_are_pooled(tmp_path: Path) -> None:
    folders = [train_folder(tmp_path / f"{m[:3]}-{s}", m, s) for s in (0, 1) for m in ("erm", SAM)]
    assert held(folders) == [[("erm", 0), ("sam", 0), ("erm", 1), ("sam", 1)]]


@pytest.mark.parametrize("other", [{"learning_rate": 1e-3}, {"data": "other.csv"}, {"sha": "b"}, {"label_noise": 0.2}])
def test_other_options_and_other_data_are_never_pooled(tmp_path: Path, other: dict[str, Any]) -> None:
    folders = [train_folder(tmp_path / "one", "erm", 0), train_folder(tmp_path / "two", SAM, 0, **other)]
    assert held(folders) == [[("erm", 0)], [("sam", 0)]]


def test_wrong_labels_differ_from_seed_to_seed_but_not_within_one(tmp_path: Path) -> None:
    noise = {"label_noise": 0.2}
    folders = [
        train_folder(tmp_path / "one", "erm", 0, "seed 0", **noise),
        train_folder(tmp_path / "two", SAM, 0, "seed 0", **noise),
        train_folder(tmp_path / "three", "erm", 1, "seed 1", **noise),
        train_folder(tmp_path / "four", SAM, 1, "another file", **noise),
    ]
    assert held(folders) == [[("erm", 0), ("sam", 0), ("erm", 1)], [("sam", 1)]]


def test_an_unfinished_training_is_missing_from_its_pool(tmp_path: Path) -> None:
    folders = [
        train_folder(tmp_path / "one", "erm", 0),
        train_folder(tmp_path / "two", SAM, 0, finished=False),
        train_folder(tmp_path / "alone", SAM, 0, finished=False, data="other.csv"),
    ]
    found = read_folders(folders)
    assert [g.missing for g in found.groups] == [{"sam": [0]}]
    assert found.notes == [f"{tmp_path / 'alone'}: the training is not finished; left out"]


def test_a_copy_counts_once(tmp_path: Path) -> None:
    one = train_folder(tmp_path / "one", "erm", 0)
    found = read_folders([one, one, Path(shutil.copytree(one, tmp_path / "copy"))])
    assert [len(g.results) for g in found.groups] == [1]
    assert found.notes == [f"{tmp_path / 'copy'}: the same training as {one}; left out"]


def test_strangers_are_named_and_left_out(tmp_path: Path) -> None:
    good = compare_folder(tmp_path / "good", [result("erm", 0)])
    empty = compare_folder(tmp_path / "begun", [])
    broken = compare_folder(tmp_path / "broken", [result("erm", 0)])
    (broken / "results.jsonl").write_text('{"method": "erm"}\n')
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.yaml").write_text("row: {}\n")
    (tmp_path / "page.html").write_text("")
    (tmp_path / "folder").mkdir()
    strangers = [empty, broken, part, tmp_path / "page.html", tmp_path / "folder", tmp_path / "nothing"]
    found = read_folders([*strangers, good])
    assert [g.name for g in found.groups] == [str(good)]
    assert len(found.notes) == len(strangers)
    for note, folder, word in zip(
        found.notes,
        strangers,
        ["finished", "not a saved run", "reproduce", "a file", "no output", "no such"],
        strict=True,
    ):
        assert note.startswith(f"{folder}: ")
        assert word in note
        assert note.endswith("left out")
    with pytest.raises(UserError, match=r"none of the folders holds a finished run; .*page\.html: a file"):
        read_folders(strangers)


def test_a_published_table_is_found_with_every_row(tmp_path: Path) -> None:
    shutil.copy(ROOT / "benchmarks/results/glue-small.jsonl", tmp_path / "runs.jsonl")
    found = read_folders([tmp_path])
    assert found.table is not None
    assert [row.name for row in found.table.rows] == [g.name.partition(": ")[2] for g in found.groups]
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    finals = [line for line in lines if line["kind"] == "run" and line["stage"] == "final"]
    assert sum(len(g.results) for g in found.groups) == len(finals)
    assert all(g.missing == {} for g in found.groups)
    assert all(math.isfinite(run.metrics[run.metric]) for g in found.groups for run in g.results)
