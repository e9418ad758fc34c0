"""Whatever is wrong with what was given ends in one line and exit code 2, before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

import deltasam.lab.train.run as training
from command_line import Cli


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: object) -> None:
        raise AssertionError("it began to train")

    monkeypatch.setattr(training.Run, "step", step)


def refused(result) -> str:  # type: ignore[no-untyped-def]
    assert result.exit_code == 2, (result.exit_code, result.exception, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "missing.csv"], "missing.csv"),
        (["--text", "verdict", "--label", "review"], "every label in column 'review' occurs once, so it is probably"),
        (["--text", "revue"], "revue"),
        (["--label", "nothing"], "nothing"),
        (["--methods", "sam:rho=-1"], "rho"),
        (["--methods", "erm,sam:rho=nan"], "rho"),
        (["--methods", "sam:rho=much"], "'much'"),
        (["--methods", "sam:roh=0.1"], "did you mean 'rho'?"),
        (["--methods", "erm,delta_smm"], "did you mean 'delta_sam'?"),
        (["--methods", "erm,sam,sam:rho=0.02"], "--methods: sam:rho=0.02,share=micro-batch is there twice"),
        (["--methods", ","], "--methods: give at least one"),
        (["--seeds", "0,1,0"], "--seeds: 0 is there twice"),
        (["--seeds", "0,one"], "--seeds '0,one': write whole numbers"),
        (["--seeds=-1"], "--seeds -1: must be a whole number from 0 to 4294967295"),
        (["--seeds", "0,4294967296"], "--seeds 4294967296: must be a whole number from 0 to 4294967295"),
        (["--train-size", "100000"], "--train-size 100000 is impossible"),
        (["--train-size", "16,100000"], "--train-size 100000 is impossible"),
        (["--train-size", "16,many"], "--train-size '16,many': write whole numbers or all, separated by commas"),
        (["--train-size", "8,8"], "--train-size: 8 is there twice"),
        (["--label-noise", "1"], "--label-noise 1: give a share of the training labels, from 0 to below 1"),
        (["--label-noise", "0,-0.2"], "--label-noise -0.2: give a share"),
        (["--label-noise", "nan"], "--label-noise nan: give a share"),
        (["--label-noise", "20%"], "--label-noise '20%': write shares separated by commas, as in 0,0.2,0.4"),
        (["--label-noise", "0.2,0.2"], "--label-noise: 0.2 is there twice"),
        (["--label-noise", "0.01"], "--label-noise 0.01 of 16 training rows changes 0"),
        (["--epochs", "0"], "--epochs 0: must be 1 or more"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--precision", "fp64"], "fp32 or bf16"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--device", "toaster"], "--device toaster"),
        (["--model", "no/such-model-anywhere"], "--model no/such-model-anywhere: no such"),
        (["--model", "./no/such/folder"], "--model ./no/such/folder: there is no such folder; give"),
        (["--model", "/nosuch"], "--model /nosuch: there is no such folder; give"),
        (["--model", "~/nosuch"], "--model ~/nosuch: there is no such folder; give"),
        (["--model", "/dev/null"], "--model /dev/null: a file, not a folder; give"),
        (["--max-length", "4000"], "the model reads at most 128 tokens"),
        (["reviews.csv"], "the data is given twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_compare(cli: Cli, compare_two: list[str], tmp_path: Path, change: list[str], message: str) -> None:
    assert message in refused(cli(*compare_two, "--output", tmp_path / "out", *change))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("per_instance_smm", "did you mean 'per_instance_sam'?"),
        ("per_instance_sam:unsupported=maybe", "unsupported must be one of 'error', 'loop', 'skip'"),
        ("delta_sam:weights=norm", "weights must be one of 'auto', 'own_curvature', 'norms', 'curvature', 'slopes'"),
    ],
)
def test_method_of_train(cli: Cli, common: list[str], tmp_path: Path, method: str, message: str) -> None:
    error = refused(cli("train", *common, "--method", method, "--output", tmp_path / "out"))
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
@pytest.mark.parametrize("command", ["train", "fidelity", "diagnose out"])
def test_seed(cli: Cli, reviews: Path, tmp_path: Path, command: str, seed: str) -> None:
    made = refused(cli(*command.split(), "--data", reviews, f"--seed={seed}", "--output", tmp_path / "made"))
    assert f"--seed {seed}: must be a whole number from 0 to 4294967295" in made
    assert not (tmp_path / "made").exists()


def test_folder_without_a_model(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    error = refused(cli(*compare_two, "--model", tmp_path, "--output", tmp_path / "out"))
    assert "holds no config.json" in error


def test_damaged_model(cli: Cli, compare_two: list[str], tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 10_000 if file.suffix == ".safetensors" else None])
    error = refused(cli(*compare_two, "--model", tmp_path, "--output", tmp_path / "out"))
    assert f"cannot load the model in {tmp_path}" in error


@pytest.mark.parametrize("command", ["train", "compare"])
def test_output_below_a_file(cli: Cli, common: list[str], tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    error = refused(cli(command, *common, "--output", tmp_path / "file/out"))
    assert f"{tmp_path / 'file'} is a file, not a folder" in error


@pytest.mark.parametrize(("made", "given"), [("train", "compare"), ("compare", "train")])
def test_output_of_another_command(cli: Cli, common: list[str], tmp_path: Path, made: str, given: str) -> None:
    saved = {"train": "method: erm\nseed: 0\n", "compare": "methods: [erm]\nseeds: [0]\n"}
    (tmp_path / "config.yaml").write_text(saved[made])
    error = refused(cli(given, *common, "--output", tmp_path))
    assert error == f"error: the folder {tmp_path} is one of deltasam {made}; choose another --output"


def test_output_on_a_device(cli: Cli, common: list[str]) -> None:
    assert "cannot write --output /dev/full" in refused(cli("compare", *common, "--output", "/dev/full"))


def test_output_that_cannot_be_made(cli: Cli, compare_two: list[str]) -> None:
    error = refused(cli(*compare_two, "--output", "/proc/deltasam"))  # refuses even root
    assert "cannot write" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch: 3\n", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("learning-rte: 1\n", "did you mean 'learning_rate'?"),
        ("- 1\n", "write one option a line"),
        ("a: [1\n", "is not YAML"),
    ],
)
def test_yaml(cli: Cli, compare_two: list[str], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert message in refused(cli(*compare_two, "--config", tmp_path / "c.yaml", "--output", tmp_path / "out"))


def test_missing_yaml(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    assert "no such file" in refused(cli(*compare_two, "--config", tmp_path / "c.yaml"))


def test_value_of_the_wrong_type_in_yaml(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("max_length: long\n")
    result = cli(*compare_two, "--config", tmp_path / "c.yaml")
    assert result.exit_code == 2
    assert "--max-length" in result.stderr
    assert "integer" in result.stderr


def test_options_come_before_data_and_data_before_the_model(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    bad = ["--methods", "smm", "--output", "/dev/full", "--data", "missing.csv", "--model", "missing/model"]
    assert "smm" in refused(cli(*compare_two, *bad))
    assert "/dev/full" in refused(cli(*compare_two, *bad[2:]))
    assert "missing.csv" in refused(cli(*compare_two, "--output", tmp_path / "out", *bad[4:]))
    assert "missing/model" in refused(cli(*compare_two, "--output", tmp_path / "out", *bad[6:]))
    assert not (tmp_path / "out").exists()
