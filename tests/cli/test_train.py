"""``deltasam train``: a model that loads, a record of how it came about, options from YAML."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from command_line import Cli
from deltasam.lab.data import load_data
from deltasam.lab.data.setting import Setting
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.tasks import text


def test_leaves_a_model_and_its_record(cli: Cli, common: list[str], tmp_path: Path) -> None:
    done = cli("train", *common, "--method", "per_instance_sam:rho=0.05", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "no", 1: "yes"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["method"] == "per_instance_sam:rho=0.05,m=1,unsupported=error"
    history = RunResult.from_json((out / "history.json").read_text())
    assert len(history.steps) == 8
    best = max(history.evaluations, key=lambda e: e.metrics["accuracy"])
    assert metrics["best"]["step"] == best.step
    assert metrics["last"]["metrics"] == history.metrics
    assert (
        yaml.safe_load((out / "config.yaml").read_text())["method"] == "per_instance_sam:rho=0.05,m=1,unsupported=error"
    )
    assert f"accuracy {best.metrics['accuracy']:.4f}" in done.stdout
    assert not [p for p in out.iterdir() if p.name.startswith(".") or p.suffix == ".pt"]


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the evaluations are to find, one after the other; the loss stays what it is."""
    found: list[float] = []
    true = text.evaluate_all
    monkeypatch.setattr(text, "evaluate_all", lambda *args: {**true(*args), "accuracy": found.pop(0)})
    return found


def test_the_saved_model_is_the_best(
    cli: Cli, common: list[str], reviews: Path, tmp_path: Path, accuracies: list[float]
) -> None:
    accuracies += [0.3, 0.9, 0.5, 0.9]
    done = cli("train", *common, "--epochs", 4, "--output", tmp_path)
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["best"]["epoch"] == 2
    rows = load_data(reviews, text="review", label="verdict").evaluation
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(**tokenizer(list(rows["text"]), padding=True, return_tensors="pt")).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(list(rows["label"]))).item()
    assert loss == pytest.approx(record["best"]["metrics"]["loss"], rel=1e-5)
    assert loss != pytest.approx(record["last"]["metrics"]["loss"], rel=1e-5)


def test_saved_configuration_repeats_the_training(cli: Cli, common: list[str], tmp_path: Path) -> None:
    assert cli("train", *common, "--output", tmp_path / "one").exit_code == 0
    again = cli("train", "--config", tmp_path / "one/config.yaml", "--output", tmp_path / "two")
    assert again.exit_code == 0, again.stderr
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_command_line_wins_over_yaml(cli: Cli, common: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch-size: 4\nseed: 7\nweight_decay: 1e-1\nmethod: erm\n")
    arguments = [a for a in common if a not in ("--batch-size", "8")]
    done = cli("train", *arguments, "--config", tmp_path / "c.yaml", "--seed", 3, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    used = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert (used["batch_size"], used["seed"], used["weight_decay"], used["method"]) == (4, 3, 0.1, "erm")


def test_regression(cli: Cli, common: list[str], tmp_path: Path) -> None:
    arguments = [*common, "--label", "score", "--task", "regression", "--output", tmp_path]
    done = cli("train", *arguments)
    assert done.exit_code == 0, done.stderr
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.problem_type == "regression"
    assert "pearson" in json.loads((tmp_path / "metrics.json").read_text())["best"]["metrics"]


def test_divergence_ends_in_one_line(cli: Cli, common: list[str], tmp_path: Path) -> None:
    done = cli("train", *common, "--learning-rate", "1e30", "--output", tmp_path)
    assert done.exit_code == 2
    assert "diverged at step" in done.stderr
    assert "smaller --learning-rate" in done.stderr


def test_an_undefined_metric_is_not_called_divergence(
    cli: Cli, common: list[str], tmp_path: Path, accuracies: list[float]
) -> None:
    accuracies += [math.nan, math.nan]
    done = cli("train", *common, "--output", tmp_path)
    assert done.exit_code == 2
    assert "accuracy was never defined: all labels or all predictions" in done.stderr


def test_a_folder_in_use_is_refused(cli: Cli, common: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    done = cli("train", *common, "--output", tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path} already holds other files; choose another --output" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_training_is_left_alone(cli: Cli, common: list[str], tmp_path: Path) -> None:
    assert cli("train", *common, "--output", tmp_path).exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for extra in ([], ["--resume"]):
        done = cli("train", *common, "--output", tmp_path, *extra)
        assert done.exit_code == 2
        assert "is finished; choose another --output" in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_label_noise(cli: Cli, common: list[str], tmp_path: Path) -> None:
    command = ["train", *common, "--method", "delta_sam", "--seed", "1"]
    for noise in ("0", "0.25"):
        done = cli(*command, "--label-noise", noise, "--output", tmp_path / noise)
        assert done.exit_code == 0, done.stderr
    clean, noisy = (RunResult.from_json((tmp_path / n / "history.json").read_text()) for n in ("0", "0.25"))
    assert clean.setting is not None
    assert noisy.setting == Setting(clean.setting.train_size, 0.25)
    assert clean.setting.label_noise == 0
    assert yaml.safe_load((tmp_path / "0.25/config.yaml").read_text())["label_noise"] == 0.25
    assert clean.steps[0].loss != noisy.steps[0].loss
    refused = cli(*command, "--label-noise", "1", "--output", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--label-noise 1: give a share" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_to_resume(cli: Cli, common: list[str], tmp_path: Path) -> None:
    done = cli("train", *common, "--output", tmp_path / "new", "--resume")
    assert done.exit_code == 2
    assert "nothing to resume" in done.stderr
