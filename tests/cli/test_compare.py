"""``deltasam compare``: what it writes, and what it refuses to mix."""

from __future__ import annotations

from pathlib import Path

import yaml

from command_line import Cli
from deltasam.experiment.grid import read_results


def test_ends_in_table_conclusion_and_report(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    done = cli(*compare_two, "--output", tmp_path / "runs/out")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "runs/out"
    assert {p.name for p in out.iterdir()} == {"config.yaml", "results.jsonl", "report.html"}
    assert [(r.method.partition(":")[0], r.seed) for r in read_results(out)] == [
        ("erm", 0), ("delta_sam", 0), ("erm", 1), ("delta_sam", 1)
    ]  # fmt: skip
    assert "delta_sam:rho=" in done.stdout
    assert str(out / "report.html") in done.stdout
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    used = yaml.safe_load((out / "config.yaml").read_text())
    assert used["seeds"] == [0, 1]
    assert used["provenance"]["data_sha256"]


def test_same_command_again_runs_nothing(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--methods", "erm", "--seeds", "0", "--output", tmp_path]
    assert cli(*command).exit_code == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert cli(*command).exit_code == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before  # times included


def test_saved_configuration_is_a_config(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    short = [*compare_two, "--methods", "erm", "--seeds", "0"]
    assert cli(*short, "--output", tmp_path / "one").exit_code == 0
    again = cli("compare", "--config", tmp_path / "one/config.yaml", "--output", tmp_path / "two")
    assert again.exit_code == 0, again.stderr
    one, two = ((tmp_path / name / "config.yaml").read_text() for name in ("one", "two"))
    assert one == two


def test_another_comparison_in_the_folder(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--methods", "erm,sam", "--seeds", "0", "--output", tmp_path]
    assert cli(*command).exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for option, value, message in [
        ("--train-size", "12", "train_size=16, now given 12"),
        ("--seeds", "0,2", "seeds=0, now given 0,2"),
        (
            "--methods",
            "erm,sam:rho=0.1",
            "methods=erm,sam:rho=0.02,share=micro-batch, now given erm,sam:rho=0.1,share=micro-batch",
        ),
        ("--max-length", "60", "max_length=128, now given 60"),
    ]:
        done = cli(*command, option, value)
        assert done.exit_code == 2
        assert f"{message}; choose another --output" in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_changed_data_is_noticed(cli: Cli, compare_two: list[str], reviews: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(reviews.read_bytes())
    command = [*compare_two, "--data", copy, "--methods", "erm", "--seeds", "0", "--output", tmp_path / "out"]
    assert cli(*command).exit_code == 0
    copy.write_text(copy.read_text().replace("number 3", "number three"))
    done = cli(*command)
    assert done.exit_code == 2
    assert "data_sha256=" in done.stderr


def test_a_diverged_run_does_not_stop_the_others(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    done = cli(*compare_two, "--learning-rate", "1e30", "--output", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert len(read_results(tmp_path)) == 4
    assert "diverged" in done.stdout
