"""A whole table on disk."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deltasam.cli.app import app
from deltasam.lab.data import load_data
from deltasam.lab.data.load import load_glue
from deltasam.lab.folders.record import read_record
from interrupted import numbers, signalled

RUNS = {"cola/search": 2, "cola/final": 6, "mrpc-noisy/search": 2, "mrpc-noisy/final": 6, "cola-noisy/final": 6}


def start(preset: Path, data_dir: Path, output: Path, *more: str) -> list[str]:
    return ["reproduce", "glue", "--scale", str(preset), "--data-dir", str(data_dir), "--output", str(output), *more]


@pytest.fixture(scope="module")
def whole(preset_file: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "table"
    done = CliRunner().invoke(app, start(preset_file, data_dir, folder), env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def stages(folder: Path) -> dict[str, list[str]]:
    return {stage: numbers(folder / stage / "results.jsonl") for stage in RUNS}


def test_every_run_of_every_stage(whole: Path) -> None:
    assert {name: len(runs) for name, runs in stages(whole).items()} == RUNS
    assert not (whole / "cola-noisy/search").exists()


def test_a_choice_that_is_taken_over(whole: Path) -> None:
    specs = {name: {json.loads(r)["method"] for r in stages(whole)[f"{name}/final"]} for name in ("cola", "cola-noisy")}
    assert specs["cola"] == specs["cola-noisy"]
    assert stages(whole)["cola/final"] != stages(whole)["cola-noisy/final"]


def test_what_is_chosen_with_is_no_evaluation_data(whole: Path, data_dir: Path) -> None:
    data = load_glue("cola", data_dir)
    chosen_with = data.for_selection(16)
    train, held_out = set(chosen_with.train["row"]), set(chosen_with.evaluation["row"])
    assert not train & held_out
    assert train | held_out == set(range(60))
    for rows in (chosen_with.train, chosen_with.evaluation):
        assert rows["text"] == [data.train["text"][row] for row in rows["row"]]
    assert len(chosen_with.evaluation) == 16
    assert chosen_with.fingerprint != data.fingerprint


def test_the_best_candidate_runs_with_every_seed(whole: Path) -> None:
    tried = [json.loads(line) for line in (whole / "cola/search/results.jsonl").read_text().splitlines()]
    best = max(tried, key=lambda run: run["metrics"][run["metric"]])["method"]
    ran = [json.loads(line) for line in (whole / "cola/final/results.jsonl").read_text().splitlines()]
    assert {run["method"] for run in ran if run["method"].startswith("sam")} == {best}
    assert [run["seed"] for run in ran if run["method"] == best] == [0, 1]


def test_a_search_run_is_the_comparison_on_the_held_out_rows(
    whole: Path, data_dir: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    """What the search did, done by hand with the parts of the library."""
    from deltasam.lab.train.config import TrainConfig
    from deltasam.lab.train.run import Run, train_run

    data = load_glue("cola", data_dir).for_selection(16).take(16, 7)
    run = Run(data, TrainConfig(**content["training"]), "sam:rho=0.1", 7)
    expected = train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)
    tried = [json.loads(line) for line in (whole / "cola/search/results.jsonl").read_text().splitlines()]
    assert expected.metrics == next(r for r in tried if "rho=0.1" in r["method"])["metrics"]


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken(whole: Path, preset_file: Path, data_dir: Path, tmp_path: Path) -> None:
    command = start(preset_file, data_dir, tmp_path / "broken")
    for at in (3, 9):  # in the search, and in the comparison
        broken = signalled(signal.SIGKILL, at, *command)
        assert broken.returncode == -signal.SIGKILL
    assert CliRunner().invoke(app, command).exit_code == 0
    assert stages(tmp_path / "broken") == stages(whole)
    assert not list((tmp_path / "broken").rglob("*.pt"))


def test_a_finished_table_starts_no_run(whole: Path, preset_file: Path, data_dir: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("results.jsonl")}
    assert CliRunner().invoke(app, start(preset_file, data_dir, whole)).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("results.jsonl")} == before


def test_other_options_are_refused(whole: Path, content: dict[str, Any], data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({**content, "search": {"seeds": [8], "held_out": 16}}), encoding="utf-8")
    done = CliRunner().invoke(app, start(path, data_dir, whole))
    assert done.exit_code == 2
    assert "was made with search=" in done.stderr
    assert done.stderr.strip().endswith("choose another --output")


def test_seeds_can_be_added(whole: Path, content: dict[str, Any], data_dir: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(whole, grown)
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump({**content, "seeds": [2, 0, 1]}), encoding="utf-8")
    assert CliRunner().invoke(app, start(path, data_dir, grown)).exit_code == 0
    for stage, runs in stages(whole).items():
        now = numbers(grown / stage / "results.jsonl")
        assert set(runs) <= set(now)  # nothing was run again, or lost
        assert len(now) == len(runs) + 3 * stage.endswith("final")
    assert {run.seed for run in read_record(grown / "runs.jsonl").rows[0].results} == {0, 1, 2}


def test_missing_data_is_said_before_any_run(preset_file: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue/cola").symlink_to(data_dir / "cola")
    done = CliRunner().invoke(app, start(preset_file, tmp_path / "glue", tmp_path / "out"))
    assert done.exit_code == 2
    assert "mrpc" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_printed(whole: Path) -> None:
    said = (whole / "said.txt").read_text(encoding="utf-8")
    for part in ("CoLA", "MRPC, noisy", "erm", "sam", "asam", "matthews", "f1, accuracy", "report.html", "runs.jsonl"):
        assert part in said
    assert (whole / "report.html").stat().st_size < 5e6


def test_the_record_holds_every_run_and_gives_the_table_back(whole: Path) -> None:
    record = read_record(whole / "runs.jsonl")
    lines = [json.loads(line) for line in (whole / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(line["kind"] == "run" for line in lines) == sum(RUNS.values())
    assert record.about["title"] == "A tiny table"
    assert {"processor", "cores", "threads", "system"} <= record.facts["CoLA"]["machine"].keys()
    assert {"torch", "deltasam", "data_sha256"} <= record.facts["CoLA"]["provenance"].keys()
    assert [row.name for row in record.rows] == ["CoLA", "MRPC, noisy", "CoLA, noisy"]
    assert record.rows[1].metrics == ("f1", "accuracy")
    final = [json.loads(line) for line in (whole / "mrpc-noisy/final/results.jsonl").read_text().splitlines()]
    assert [(r.method, r.seed, r.metrics) for r in record.rows[1].results] == [
        (r["method"], r["seed"], r["metrics"]) for r in final
    ]
    assert [list(row.labels.values()) for row in record.rows] == [["erm", "sam", "asam"]] * 3  # as in the preset


def test_help_and_show() -> None:
    shown = CliRunner().invoke(app, ["reproduce", "glue", "--show"])
    assert shown.exit_code == 0
    assert yaml.safe_load(shown.stdout)["table"] == "glue"
    done = CliRunner().invoke(app, ["reproduce", "squad"])
    assert done.exit_code == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: squad: no table; give")


def test_only_some_rows(preset_file: Path, data_dir: Path, tmp_path: Path) -> None:
    command = start(preset_file, data_dir, tmp_path / "some")
    assert CliRunner().invoke(app, [*command, "--row", "MRPC, noisy"]).exit_code == 0
    assert [p.name for p in sorted((tmp_path / "some").iterdir()) if p.is_dir()] == ["mrpc-noisy"]
    assert load_data(data_dir / "cola").metric == "matthews"


def test_wrong_labels_and_one_run_of_it_by_compare(content: dict[str, Any], data_dir: Path, tmp_path: Path) -> None:
    """Candidates are chosen by noisy rows, the best at the edge asks for more, and ``compare`` does a run again."""
    row = {"name": "CoLA", "data": "cola", "label_noise": 0.25, "noisy_selection": True, "options": {"evaluation": 24}}
    training = {**content["training"], "epochs": 2, "evaluate_every": 1, "train_layers": 1}
    methods = {"erm": ["erm"], "sam": ["sam:rho=0.01", "sam:rho=0.1"], "longer": ["erm+epochs=3"]}
    changes = {"table": "noise", "rows": [row], "training": training, "methods": methods}
    search = {"seeds": [7], "widen": 1}
    path, output = tmp_path / "noise.yaml", tmp_path / "all"
    path.write_text(yaml.safe_dump({**content, **changes, "search": search}, sort_keys=False), encoding="utf-8")
    command = [
        "reproduce",
        "noise",
        "--scale",
        str(path),
        "--data-dir",
        str(data_dir),
        "--output",
        str(output),
    ]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    tried, ran = (
        [json.loads(line) for line in (output / f"cola/{stage}/results.jsonl").read_text().splitlines()]
        for stage in ("search", "final")
    )
    assert len(tried) == 3  # the best of two is at the edge
    best = max(tried, key=lambda run: run["metrics"]["matthews_selection_selected"])["method"]
    assert {run["method"] for run in ran} == {"erm", "erm+epochs=3", best}
    assert read_record(output / "runs.jsonl").rows[0].metrics[0] == "matthews_selected"
    again = [
        "compare",
        str(data_dir / "cola/train.jsonl"),
        "--text",
        "sentence",
        "--eval-size",
        "24",
        "--train-size",
        "16",
    ]
    again += ["--label-noise", "0.25", "--noisy-selection", "--train-layers", "1", "--seeds", "1", "--methods", best]
    again += ["--output", str(tmp_path / "one")]
    for name in ("model", "epochs", "batch_size", "learning_rate"):
        again += [f"--{name.replace('_', '-')}", str(training[name])]
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 0, done.output
    (one,) = [json.loads(line) for line in (tmp_path / "one/results.jsonl").read_text().splitlines()]
    expected = next(run for run in ran if run["method"] == best and run["seed"] == 1)
    # CoLA as such is judged by Matthews' correlation, a file by accuracy: the epoch that is chosen may be another.
    last = [{k: v for k, v in run["metrics"].items() if "_selected" not in k} for run in (one, expected)]
    assert last[0] == last[1]
    assert [step["loss"] for step in one["steps"]] == [step["loss"] for step in expected["steps"]]


def test_other_layers_than_the_preset_says(preset_file: Path, data_dir: Path, tmp_path: Path) -> None:
    command = start(preset_file, data_dir, tmp_path / "top", "--row", "CoLA", "--train-layers", "1")
    assert CliRunner().invoke(app, command).exit_code == 0
    assert yaml.safe_load((tmp_path / "top/cola/config.yaml").read_text())["training"]["train_layers"] == 1
    refused = CliRunner().invoke(app, command[:-2])
    assert refused.exit_code == 2
