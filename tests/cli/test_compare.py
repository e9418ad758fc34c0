"""``deltasam compare``: what it writes, and what it refuses to mix."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from command_line import Cli
from deltasam.lab.data import load_data
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.files import read_results


def test_ends_in_table_conclusion_and_report(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    done = cli(*compare_two, "--output", tmp_path / "runs/out")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "runs/out"
    assert {p.name for p in out.iterdir()} == {"config.yaml", "results.jsonl", "report.html", "examples"}
    assert len(list((out / "examples").iterdir())) == 4
    assert [(r.method.partition(":")[0], r.seed) for r in read_results(out)] == [
        ("erm", 0), ("delta_sam", 0), ("erm", 1), ("delta_sam", 1)
    ]  # fmt: skip
    assert "delta_sam " in done.stdout
    assert "delta_sam:rho=0.02" not in done.stdout  # its default
    assert str(out / "report.html") in done.stdout
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    used = yaml.safe_load((out / "config.yaml").read_text())
    assert used["seeds"] == [0, 1]
    assert used["provenance"]["data_sha256"]


def test_final_models_are_measured_with_changed_weights(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--epochs", "1", "--output", tmp_path]
    done = cli(*command, "--after")
    assert done.exit_code == 0, done.stderr
    results = read_results(tmp_path)
    for run in results:
        assert len(run.after) == 9
        assert run.after["as trained"]["accuracy"] == run.metrics["accuracy"]
        assert run.after["3 bits"]["loss"] != run.after["as trained"]["loss"]
    for change in results[0].after:
        assert change in done.stdout
    assert "After training" in (tmp_path / "report.html").read_text(encoding="utf-8")
    again = cli("compare", "--config", tmp_path / "config.yaml", "--output", tmp_path)
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    refused = cli(*command)
    assert refused.exit_code == 2
    assert "after=True, now given False" in refused.stderr


def test_folders_from_before_go_on_without_it(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--methods", "erm", "--epochs", "1", "--seeds", "0", "--output", tmp_path]
    assert cli(*command).exit_code == 0
    config, results = tmp_path / "config.yaml", tmp_path / "results.jsonl"
    options = yaml.safe_load(config.read_text())
    del options["after"]
    config.write_text(yaml.safe_dump(options))
    run = json.loads(results.read_text())
    del run["after"]
    results.write_text(json.dumps(run) + "\n")
    before = results.read_bytes()
    done = cli(*command)
    assert done.exit_code == 0, done.stderr
    assert results.read_bytes() == before
    assert "as trained" not in done.stdout
    refused = cli(*command, "--after")
    assert refused.exit_code == 2
    assert "after=False, now given True" in refused.stderr


def test_axes_give_a_comparison_each(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    axes = ["--train-size", "8,all", "--label-noise", "0,0.25"]
    command = [*compare_two, "--epochs", "1", "--seeds", "0", *axes, "--output", tmp_path]
    done = cli(*command)
    assert done.exit_code == 0, done.stderr
    rows = len(load_data(compare_two[2], text="review", label="verdict").train)
    settings = [Setting(8), Setting(8, 0.25), Setting(rows), Setting(rows, 0.25)]
    assert [r.setting for r in read_results(tmp_path)] == [s for s in settings for _ in range(2)]
    heads = [line for line in done.stdout.splitlines() if "training examples" in line]
    assert heads == [s.title for s in settings]
    assert heads[1] == "8 training examples, 25 % label noise"
    assert done.stdout.count("One seed says nothing about noise") == 4
    used = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (used["train_size"], used["label_noise"]) == ([8, "all"], [0.0, 0.25])
    again = cli("compare", "--config", tmp_path / "config.yaml", "--output", tmp_path)
    assert (again.exit_code, again.stdout) == (0, done.stdout)


def test_a_small_table_is_used_whole_unless_a_size_is_given(cli: Cli, common: list[str], tmp_path: Path) -> None:
    command = ["compare", *common, "--methods", "erm", "--seeds", "0", "--epochs", "1", "--output", tmp_path]
    assert cli(*command, "--train-size", "320").exit_code == 2
    done = cli(*command)
    assert done.exit_code == 0, done.stderr
    rows = len(load_data(common[1], text="review", label="verdict").train)
    assert rows < 320
    assert read_results(tmp_path)[0].setting == Setting(rows)
    again = cli("compare", "--config", tmp_path / "config.yaml", "--output", tmp_path)
    assert (again.exit_code, again.stdout) == (0, done.stdout)


def test_a_single_setting_is_not_talked_about(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    done = cli(*compare_two, "--methods", "erm", "--seeds", "0", "--label-noise", "0", "--output", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "training examples" not in done.stdout
    assert read_results(tmp_path)[0].setting == Setting(16)
    used = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (used["train_size"], used["label_noise"]) == (16, None)
    # A folder from before there was noise goes on.
    del used["label_noise"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(used))
    assert cli(*compare_two, "--methods", "erm", "--seeds", "0", "--output", tmp_path).exit_code == 0


def test_same_command_again_runs_nothing(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--methods", "erm", "--seeds", "0", "--output", tmp_path]
    assert cli(*command).exit_code == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert cli(*command).exit_code == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before  # times included


@pytest.mark.slow
def test_side_by_side_is_the_same_experiment(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--methods", "erm", "--output", tmp_path]
    done = cli(*command, "--workers", "2")
    assert done.exit_code == 0, done.stderr
    assert "4/4" not in done.stderr
    assert "2/2" in done.stderr
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*.*") if p.suffix != ".html"}
    assert {name for name in before if not name.endswith(".csv")} == {"config.yaml", "results.jsonl"}
    assert not {"workers", "launcher"} & set(yaml.safe_load(before["config.yaml"]))
    assert cli(*command).exit_code == 0  # one after the other: nothing is left to do, and nothing differs
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*.*") if p.suffix != ".html"} == before


def test_ray_is_missing(cli: Cli, compare_two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "deltasam.lab.compare.launchers.ray_cluster", raising=False)
    done = cli(*compare_two, "--launcher", "ray", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr == "error: --launcher ray needs the library 'ray'; pip install 'deltasam[ray]'\n"
    assert not (tmp_path / "out").exists()


def test_methods_have_short_names_and_files_full_ones(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    methods = "erm,sam,sam:rho=0.05,per_instance_sam,per_instance_sam:m=2"
    done = cli(*compare_two, "--methods", methods, "--seeds", "0", "--epochs", "1", "--output", tmp_path)
    assert done.exit_code == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    for name in methods.split(","):
        assert name in rows
    assert "unsupported=error" not in done.stdout + done.stderr
    assert read_results(tmp_path)[-1].method == "per_instance_sam:rho=0.005,m=2,unsupported=error"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<bdi>per_instance_sam:m=2</bdi>" in page
    assert "<bdi>per_instance_sam:rho=" not in page
    assert "per_instance_sam:rho=0.005,m=2,unsupported=error" in page  # among the options


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
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*.*")}
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
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*.*")} == before


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


def test_noisy_selection_and_rivals(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--methods", "erm,erm+label_smoothing=0.2+epochs=3,sam", "--train-layers", "1"]
    command += ["--label-noise", "0.25", "--noisy-selection", "--eval-size", "16", "--output", tmp_path]
    done = cli(*command)
    assert done.exit_code == 0, done.stderr
    results = read_results(tmp_path)
    assert {r.setting for r in results} == {Setting(16, 0.25, noisy_selection=True)}
    assert {r.metric for r in results} == {"accuracy_selected"}
    assert len({len(r.steps) for r in results if "epochs" in r.method} | {len(r.steps) for r in results}) == 2
    assert "accuracy_selected" in done.stdout
    assert "label_smoothing" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert cli(*command).stdout == done.stdout  # nothing is left to do
    assert cli(*command[:-3], "--output", tmp_path).exit_code == 2  # without it, another comparison


def test_a_folder_from_before_there_was_an_option_goes_on(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    command = [*compare_two, "--epochs", "1", "--output", tmp_path]
    assert cli(*command).exit_code == 0
    config = tmp_path / "config.yaml"
    options = yaml.safe_load(config.read_text())
    for name in ("train_layers", "label_smoothing", "last_layer_l2", "noisy_selection"):
        del options[name]
    config.write_text(yaml.safe_dump(options))
    assert cli(*command).exit_code == 0
    refused = cli(*command, "--train-layers", "1")
    assert refused.exit_code == 2
    assert "train_layers=0, now given 1" in refused.stderr
