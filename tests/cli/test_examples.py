"""``deltasam examples`` and ``inspect_examples``: what finished runs have recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from command_line import Cli
from deltasam.cli.app import app
from deltasam.diagnostics.examples import inspect_examples, read_examples
from deltasam.errors import UserError
from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.paired import estimate
from deltasam.lab.folders.files import read_results

METHODS = "erm,delta_sam,per_instance_sam"


@pytest.fixture(scope="module")
def compared(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, two seeds, a quarter of the labels made wrong."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    command = [
        "compare",
        *common,
        "--methods",
        METHODS,
        "--seeds",
        "0,1",
        "--train-size",
        "16",
        "--label-noise",
        "0.25",
    ]
    done = CliRunner().invoke(app, [*command, "--output", str(folder)])
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "out"
    done = CliRunner().invoke(app, ["train", *common, "--method", "delta_sam", "--output", str(folder)])
    assert done.exit_code == 0, done.stderr
    return folder


def test_every_run_and_example_in_one_table(compared: Path) -> None:
    frame = inspect_examples(compared)
    runs = frame.groupby(["method", "seed"], sort=False).size()
    assert runs.to_dict() == {(m, s): 16 for s in (0, 1) for m in METHODS.split(",")}
    assert set(frame["train_size"]) == {16}
    assert set(frame["label_noise"]) == {0.25}
    for (_, seed), run in frame.groupby(["method", "seed"]):
        assert run["flipped"].sum() == 4
        assert (run["flipped"] == (run["label"] != run["clean_label"])).all()
        assert run["row"].tolist() == frame[frame["seed"] == seed]["row"].tolist()[:16]  # methods share rows
    assert frame[frame["method"] == "erm"][["mean_weight", "mean_norm"]].isna().all(axis=None)
    assert frame[frame["method"] == "delta_sam"][["mean_weight", "mean_norm"]].notna().all(axis=None)
    assert set(frame["visits"]) == {2}


def test_a_choice_of_the_runs_ranked(compared: Path) -> None:
    by_norm = inspect_examples(compared, by="norm")
    assert list(dict.fromkeys(by_norm["method"])) == ["delta_sam", "per_instance_sam"]  # erm has none
    for _, run in by_norm.groupby(["method", "seed"]):
        assert len(run) == 16
        assert run["mean_norm"].is_monotonic_decreasing
    one = inspect_examples(compared, method="delta_sam:rho=0.02", seed=1)
    assert set(zip(one["method"], one["seed"], strict=True)) == {("delta_sam", 1)}
    with pytest.raises(UserError, match=r"no run of erm in .* has a weight of its examples; every run has a loss"):
        inspect_examples(compared, by="weight", method="erm")


def test_what_the_result_keeps_is_of_the_table(compared: Path) -> None:
    frame = inspect_examples(compared)
    for result in read_results(compared):
        table = frame[(frame["method"] == result.method.partition(":")[0]) & (frame["seed"] == result.seed)]
        for by in ("weight", "norm", "loss"):
            known = table.dropna(subset=f"mean_{by}").sort_values(f"mean_{by}", ascending=False, kind="stable")
            assert [e.row for e in result.ranked(by)] == known["row"].tolist()
            if len(known):
                wrong, right = (known[known["flipped"] == side][f"mean_{by}"] for side in (True, False))
                won = [float(a > b) + 0.5 * (a == b) for a in wrong for b in right]
                assert result.detection[by].auroc == pytest.approx(sum(won) / len(won), abs=1e-12)


def test_detection_over_the_seeds(compared: Path) -> None:
    results = read_results(compared)
    for summary in compare_runs(results).begun:
        runs = [r for r in results if r.method == summary.method]
        assert summary.auroc.keys() == summary.average_precision.keys() == runs[0].detection.keys()
        for by, found in summary.auroc.items():
            assert found == estimate([run.detection[by].auroc for run in runs])
            assert summary.average_precision[by] == estimate([r.detection[by].average_precision for r in runs])


def test_tables_in_the_terminal(cli: Cli, compared: Path) -> None:
    done = cli("examples", compared, "--top", "3")
    assert done.exit_code == 0, done.stderr
    for method in METHODS.split(","):
        first = inspect_examples(compared, by="loss", method=method, seed=0).head(4)
        title = f"{method} seed 0, 16 training examples, 25 % label noise"
        shown = done.stdout.partition(title)[2].partition("the 3 with the largest loss of 16")[0]
        assert [line.split()[0] for line in shown.splitlines() if line[:1].isdigit()] == [
            str(r) for r in first["row"][:3]
        ]
        assert first["text"].iloc[0] in shown
        assert first["text"].iloc[3] not in shown
    assert "seed 1" not in done.stdout
    assert "AUROC of weight" in done.stdout
    rows = [line.split() for line in done.stdout.partition("AUROC of weight")[2].splitlines()]
    assert next(row for row in rows if row[:1] == ["erm"])[1:3] == ["–", "–"]
    assert "0.5: chance" in done.stdout
    assert cli("examples", compared, "--seed", "1", "--method", "erm", "--top", "1").stdout.count("seed 1") == 1


def test_all_of_them_in_a_file(cli: Cli, compared: Path, tmp_path: Path) -> None:
    done = cli("examples", compared, "--by", "weight", "--output", tmp_path / "suspects.csv")
    assert done.exit_code == 0, done.stderr
    expected = inspect_examples(compared, by="weight")
    assert len(expected) == 32
    found = read_examples(tmp_path / "suspects.csv")
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_training(cli: Cli, trained: Path) -> None:
    done = cli("examples", trained, "--by", "weight", "--top", "2")
    assert done.exit_code == 0, done.stderr
    assert "delta_sam seed 0, 32 training examples, no label noise added" in done.stdout
    assert "AUROC" not in done.stdout
    assert "label was" not in done.stdout
    frame = inspect_examples(trained)
    assert "clean_label" not in frame
    pd.testing.assert_frame_equal(read_examples(trained / "examples.csv"), frame.iloc[:, 4:])


def test_what_cannot_be_shown(cli: Cli, compared: Path, trained: Path, tmp_path: Path) -> None:
    def refusal(*arguments: object) -> str:
        done = cli("examples", *arguments)
        assert done.exit_code == 2
        return " ".join(done.stderr.split())

    assert refusal(compared, "--by", "size") == "error: --by size: must be weight, norm, loss"
    assert "--method sam: no such run in" in refusal(compared, "--method", "sam")
    assert "there are erm, delta_sam, per_instance_sam with seeds 0, 1" in refusal(compared, "--seed", "7")
    assert "holds no finished run; give the --output of deltasam train or compare" in refusal(tmp_path / "nothing")
    assert f"inside it there are {compared}" in refusal(compared.parent)
    shutil.copytree(trained, tmp_path / "old")
    (tmp_path / "old/examples.csv").unlink()
    assert "have no tables of their examples" in refusal(tmp_path / "old")
    (tmp_path / "old/examples.csv").write_text("row,text\n")
    assert "it has no column 'visits'" in refusal(tmp_path / "old")
    (tmp_path / "old/history.json").write_text("{}")
    assert "not a saved run" in refusal(tmp_path / "old")


def test_a_text_cannot_steer_the_terminal(cli: Cli, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "out")
    table = (tmp_path / "out/examples.csv").read_text()
    first = read_examples(tmp_path / "out/examples.csv").sort_values("mean_loss")["text"].iloc[-1]
    (tmp_path / "out/examples.csv").write_text(table.replace(first, "[bold]\x1b[2J\x07 " + "x" * 400))
    done = cli("examples", tmp_path / "out", "--top", "1")
    assert done.exit_code == 0, done.stderr
    assert "[bold] [2J" in done.stdout
    assert "\x1b" not in done.stdout
    assert "x" * 200 not in done.stdout
