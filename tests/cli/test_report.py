"""``deltasam report`` on what the other commands really write."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from command_line import Cli
from deltasam.lab.folders.files import read_results

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def compared(cli: Cli, compare_two: list[str], folders: Path) -> Path:
    """A finished comparison of two methods with two seeds."""
    if not (folders / "compared").exists():
        done = cli(*compare_two, "--epochs", "1", "--label-noise", "0.25", "--output", folders / "compared")
        assert done.exit_code == 0, done.stderr
    return folders / "compared"


def test_a_comparison_gets_the_same_page_again(cli: Cli, compared: Path) -> None:
    before = (compared / "report.html").read_text(encoding="utf-8")
    (compared / "report.html").unlink()
    done = cli("report", compared)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"Report: {compared / 'report.html'}\n"
    after = (compared / "report.html").read_text(encoding="utf-8")
    (start, options), (start_before, options_before) = (text.split("<summary>Options") for text in (after, before))
    assert start == start_before
    assert sorted(options.splitlines()) == sorted(options_before.splitlines())  # a file has lost their order


def test_an_unfinished_comparison_is_not_judged(cli: Cli, compared: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(compared, tmp_path / "begun"))
    lines = (begun / "results.jsonl").read_text(encoding="utf-8").split("\n")
    (begun / "results.jsonl").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    assert cli("report", begun).exit_code == 0
    page = (begun / "report.html").read_text(encoding="utf-8")
    assert "Not finished: 1 of 4 runs are missing (delta_sam with seed 1)." in page
    assert "Nothing can be concluded" in page or "One seed says nothing" in page


def test_trainings_and_a_comparison_on_one_page(cli: Cli, common: list[str], compared: Path, tmp_path: Path) -> None:
    for method in ("erm", "sam"):
        for seed in ("0", "1"):
            command = ["train", *common, "--epochs", "1", "--method", method, "--seed", seed]
            assert cli(*command, "--output", tmp_path / f"{method}-{seed}").exit_code == 0
    other = ["train", *common, "--epochs", "1", "--method", "sam", "--learning-rate", "0.001"]
    assert cli(*other, "--output", tmp_path / "slower").exit_code == 0
    (tmp_path / "notes").mkdir()
    shutil.copytree(compared, tmp_path / "compared")
    table = tmp_path / "table"
    table.mkdir()
    shutil.copy(ROOT / "benchmarks/results/sts-small.jsonl", table / "runs.jsonl")
    output = tmp_path / "all.html"
    done = cli("report", *sorted(tmp_path.iterdir()), "--output", output)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("note: ") == done.stderr.count("\n") == 1
    assert f"{tmp_path / 'notes'}: no output folder of compare, train or reproduce" in done.stderr
    page = output.read_text(encoding="utf-8")
    titles = re.findall(r'<article id="part-\d+" class="setting" data-task="([^"]*)"', page)
    assert titles == [
        str(tmp_path / "compared"), f"{tmp_path / 'table'}: STS", f"{tmp_path / 'erm-0'} and 3 more",
        str(tmp_path / "slower"),
    ]  # fmt: skip
    links = re.findall(r'<a href="#(part-\d+)"><bdi>', page)
    assert links == [f"part-{i}" for i in range(4)]
    assert str(tmp_path / "notes") in page.split("Not on this page")[1]
    assert len(page.encode()) < 5_000_000


def test_a_table_gets_its_own_page(cli: Cli, tmp_path: Path) -> None:
    shutil.copy(ROOT / "benchmarks/results/sts-small.jsonl", tmp_path / "runs.jsonl")
    done = cli("report", tmp_path)
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Worse than erm: delta_sam on 1 of 1 task (STS)." in page


def test_where_the_page_goes(cli: Cli, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    twice = tmp_path / "again"
    shutil.copytree(compared, twice, ignore=shutil.ignore_patterns("*.html"))
    assert cli("report", compared, twice).exit_code == 0
    assert (tmp_path / "report.html").is_file()
    assert not (twice / "report.html").exists()
    done = cli("report", compared, "--output", tmp_path)
    assert done.exit_code == 2
    assert "a folder; give the file" in done.stderr


def test_nothing_to_report(cli: Cli, tmp_path: Path) -> None:
    done = cli("report", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: none of the folders holds a finished run; ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_results_are_left_as_they_are(cli: Cli, compared: Path) -> None:
    before = (compared / "results.jsonl").read_bytes()
    assert cli("report", compared).exit_code == 0
    assert (compared / "results.jsonl").read_bytes() == before
    assert len(read_results(compared)) == 4
