"""Folders that version 0.1.0 wrote, which says nowhere which command it was: read, resumed and reported on."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deltasam.cli.app import app
from deltasam.lab.folders.config import read_config
from deltasam.lab.folders.contents import read_folders
from deltasam.lab.folders.examples import inspect_examples
from deltasam.lab.folders.files import read_results

COMMON = [
    *("--data", "reviews.csv", "--text", "review", "--label", "verdict", "--model", "model", "--device", "cpu"),
    *("--max-length", "16", "--batch-size", "8", "--learning-rate", "0.003", "--epochs", "2"),
]
COMPARE = ["compare", *COMMON, "--methods", "erm,delta_sam", "--seeds", "0,1", "--train-size", "8"]
COMPARE += ["--label-noise", "0.25"]
TABLE = ["reproduce", "glue", "--scale", "table.yaml", "--data-dir", "glue", "--device", "cpu"]


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, as if the libraries were still those of that time: with others nothing is resumed."""
    folder = Path(shutil.copytree(Path(__file__).parent / "written_by_0_1_0", tmp_path / "old"))
    for path in folder.rglob("config.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["provenance"] |= {name: version(name) for name in ("deltasam", "torch", "transformers")}
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("folder", "command"),
    [("train", "train"), ("train-begun", "train"), ("compare", "compare"), ("table/cola", "reproduce")],
)
def test_the_command_is_known_and_no_option(folder: str, command: str) -> None:
    made_by, options = read_config(Path(folder))
    assert made_by == command
    assert "command" not in options


def test_all_kinds_are_read() -> None:
    contents = read_folders([Path(name) for name in ("compare", "table", "train", "train-begun")])
    assert contents.notes == []
    assert [group.name for group in contents.groups] == ["compare", "table: CoLA", "train and 1 more"]
    assert [group.missing for group in contents.groups] == [{"delta_sam": [1]}, {}, {"erm": [0]}]
    assert len(inspect_examples("compare")) == 3 * 8
    assert len(inspect_examples("train")) == 19


def test_a_training_goes_on_at_its_checkpoint() -> None:
    done = run("train", *COMMON, "--method", "erm", "--checkpoint-every", "1", "--output", "train-begun", "--resume")
    assert done.exit_code == 0, done.output
    steps = json.loads(Path("train-begun/history.json").read_text(encoding="utf-8"))["steps"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    again = run("train", *COMMON, "--method", "sam", "--output", "train", "--resume")
    assert "is finished" in again.output


def test_a_comparison_goes_on() -> None:
    before = read_results(Path("compare"))
    done = run(*COMPARE, "--output", "compare")
    assert done.exit_code == 0, done.output
    after = read_results(Path("compare"))
    assert (len(before), after[:3]) == (3, before)
    assert [(result.method.partition(":")[0], result.seed) for result in after[3:]] == [("delta_sam", 1)]


def test_a_table_goes_on() -> None:
    folder = Path("table/cola/final")
    before = read_results(folder)
    (folder / "results.jsonl").write_text("".join(f"{result.to_json()}\n" for result in before[:-1]), encoding="utf-8")
    done = run(*TABLE, "--output", "table")
    assert done.exit_code == 0, done.output
    after = read_results(folder)
    assert after[:-1] == before[:-1]
    assert (after[-1].method, after[-1].metrics) == (before[-1].method, pytest.approx(before[-1].metrics))


def test_a_page_about_all_of_them() -> None:
    done = run("report", "compare", "table", "train", "train-begun")
    assert done.exit_code == 0, done.output
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count('<article id="part-') == 3
    assert "Not finished: 1 of 4 runs are missing (delta_sam with seed 1)." in page


@pytest.mark.parametrize("folder", ["compare", "table/cola", "train"])
def test_another_command_does_not_write_there(folder: str) -> None:
    made_by = read_config(Path(folder))[0]
    fidelity = run("fidelity", "demo", "--output", folder)
    assert fidelity.exit_code == 2
    assert f"is one of deltasam {made_by}; choose another --output" in fidelity.output


def test_the_command_is_written_now_and_passed_over_by_config() -> None:
    options = ["--methods", "erm", "--seeds", "0", "--train-size", "8"]
    assert run("compare", *COMMON, *options, "--output", "new").exit_code == 0
    assert yaml.safe_load(Path("new/config.yaml").read_text(encoding="utf-8"))["command"] == "compare"
    again = run("compare", "--config", "new/config.yaml", "--output", "again")
    assert again.exit_code == 0, again.output
