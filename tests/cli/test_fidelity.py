"""``deltasam fidelity``: a table, numbers as JSON, and one line for what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import deltasam
from command_line import Cli
from deltasam.diagnostics import default_methods
from deltasam.lab.train.run import Run


@pytest.fixture(scope="session")
def measure(common: list[str]) -> list[str]:
    arguments = [a for i, a in enumerate(common) if "--epochs" not in common[max(0, i - 1) : i + 1]]
    return ["fidelity", *arguments, "--batches", "2", "--warmup-steps", "3"]


def words(text: str) -> str:
    return " ".join(text.split())


def test_shows_every_method_and_says_what_it_means(cli: Cli, measure: list[str]) -> None:
    done = cli(*measure)
    assert done.exit_code == 0, done.stderr
    for name in default_methods():
        assert name in done.stdout
    assert "per_instance_sam" not in done.stdout
    assert "2 batches; ±: standard deviation" in done.stdout
    assert "error 0, cosine 1 and loss share 1 are exact" in words(done.stdout)
    assert "one perturbation of length 0.02 per example" in words(done.stdout)
    assert "1.000" in done.stdout  # the error of plain training


def test_a_new_method_is_measured_by_itself(cli: Cli, measure: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(deltasam.SAM):
        """A method of one's own."""

        name = "mine"

    monkeypatch.setitem(deltasam.Method.registry, "mine", Mine)
    assert "mine:rho=0.02 " in cli(*measure, "--batches", "1").stdout


def test_the_exact_method_is_exact(cli: Cli, measure: list[str], tmp_path: Path) -> None:
    command = [*measure, "--methods", "per_instance_sam,erm,sam:rho=0.1", "--output", tmp_path / "out"]
    done = cli(*command)
    assert done.exit_code == 0, done.stderr
    assert f"Numbers: {tmp_path / 'out/fidelity.json'}" in done.stdout
    exact, erm, sam, floor = json.loads((tmp_path / "out/fidelity.json").read_text())
    assert exact["method"] == "per_instance_sam:rho=0.02,m=1,unsupported=error"
    assert exact["mean"]["error"] == pytest.approx(0, abs=1e-4)
    assert exact["mean"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert exact["mean"]["loss_share"] == pytest.approx(1, abs=1e-4)
    assert erm["mean"]["cosine"] is None
    assert erm["mean"]["loss_share"] == 0
    assert sam["method"] == "sam:rho=0.1,share=micro-batch"
    assert sam["mean"]["distance"] == pytest.approx(5, rel=1e-3)
    assert len(sam["batches"]) == 2
    assert floor["method"] == "floor:rho=0.02"
    assert 0 < floor["mean"]["error"] < 1
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.yaml", "fidelity.json"}
    used = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert (used["rho"], used["warmup_steps"], used["batches"]) == (0.02, 3, 2)
    assert used["provenance"]["data_sha256"]
    again = cli("fidelity", "--config", tmp_path / "out/config.yaml", "--output", tmp_path / "two")
    assert again.exit_code == 0, again.stderr
    first, second = (json.loads((tmp_path / name / "fidelity.json").read_text()) for name in ("out", "two"))
    assert [{**m, "cost": 0} for m in first] == [{**m, "cost": 0} for m in second]


def test_another_measurement_in_the_folder(cli: Cli, measure: list[str], tmp_path: Path) -> None:
    command = [*measure, "--methods", "sam", "--batches", "1", "--output", tmp_path]
    assert cli(*command).exit_code == 0
    before = (tmp_path / "fidelity.json").read_bytes()
    done = cli(*command, "--seed", "1")
    assert done.exit_code == 2
    assert "seed=0, now given 1; choose another --output" in done.stderr
    assert (tmp_path / "fidelity.json").read_bytes() == before


def test_warm_up_is_as_long_as_asked(cli: Cli, measure: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    step = Run.step
    monkeypatch.setattr(Run, "step", lambda self: (taken.append(self.method.spec), step(self))[1])
    for steps in (0, 1, 9):  # an epoch has 4
        taken.clear()
        done = cli(*measure, "--methods", "sam", "--batches", "1", "--warmup-steps", steps)
        assert done.exit_code == 0, done.stderr
        assert taken == ["erm"] * steps


def test_a_saved_model_is_measured_as_it_is(cli: Cli, common: list[str], measure: list[str], tmp_path: Path) -> None:
    assert cli("train", *common, "--method", "erm", "--output", tmp_path / "model").exit_code == 0
    found = []
    for seed in (0, 1):  # the head is the saved one: with one batch of all rows and no dropout nothing is drawn
        config = tmp_path / "model/config.json"
        settings = json.loads(config.read_text())
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config.write_text(json.dumps(settings))
        out = tmp_path / str(seed)
        extra = ["--model", tmp_path / "model", "--warmup-steps", 0, "--batch-size", 32, "--batches", 1]
        done = cli(*measure, *extra, "--methods", "sam", "--seed", seed, "--output", out)
        assert done.exit_code == 0, done.stderr
        found.append(json.loads((out / "fidelity.json").read_text())[0]["mean"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_regression(cli: Cli, measure: list[str]) -> None:
    done = cli(*measure, "--label", "score", "--task", "regression", "--methods", "sam", "--batches", "1")
    assert done.exit_code == 0, done.stderr
    assert "1 batch;" in done.stdout


def test_ctrl_c_leaves_nothing(cli: Cli, measure: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "step", interrupted)
    done = cli(*measure, "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert "stopped; nothing is kept, start again" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", ["80", "120"])
def test_no_number_is_broken(cli: Cli, measure: list[str], monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    shown = cli(*measure).stdout
    assert max(map(len, shown.splitlines())) <= int(width)
    assert "…" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--methods", "delta_smm"], "did you mean 'delta_sam'?"),
        (["--methods", "sam,sam:rho=0.02"], "--methods: sam:rho=0.02,share=micro-batch is there twice"),
        (["--methods", ","], "--methods: give at least one"),
        (["--methods", "sam@every=2"], "--methods sam@every=2: the radius of a schedule changes from step to step"),
        (["--methods", "per_instance_sam:m=3"], "m=3 must divide"),
        (["--rho", "0"], "--rho 0.0: must be a finite number above 0"),
        (["--rho", "nan"], "--rho nan"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--data", "missing.csv"], "missing.csv"),
        (["--model", "./no/such/folder"], "--model ./no/such/folder"),
        (["--learning-rate", "1e30"], "plain training diverged at step"),
        (["--output", "/dev/full"], "cannot write --output /dev/full"),
        (["reviews.csv"], "the data is given twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(cli: Cli, measure: list[str], change: list[str], message: str) -> None:
    done = cli(*measure, *change)
    assert done.exit_code == 2, (done.exit_code, done.exception)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--batches", "--warmup-steps"])
def test_a_count_below_its_least(cli: Cli, measure: list[str], option: str) -> None:
    done = cli(*measure, option, "-1")
    assert done.exit_code == 2
    assert option in done.stderr
