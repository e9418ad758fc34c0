"""What is seen in TensorBoard while a run goes on is what the run records."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from command_line import Cli
from interrupted import numbers, signalled

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra 'track'"
)

TENSORBOARD = ["--track", "tensorboard"]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every curve of a run by its tag: the value at each step, each seen once."""
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, points in curves.items():
        assert len({p.step for p in points}) == len(points), f"{tag}: a step is there twice"
    return {tag: {p.step: p.value for p in points} for tag, points in curves.items()}


def started_within(seconds: int, folder: Path) -> None:
    """Rename the file of events as if it had been begun just now, by a process with a higher number."""
    (file,) = folder.glob("events.out.tfevents.*")
    file.rename(file.with_name(f"events.out.tfevents.{int(time.time()) + seconds}.~.0.0"))


def recorded(run: dict) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for kind, records in (("train", run["steps"]), ("eval", run["evaluations"])):
        for record in records:
            step = record.pop("step")
            for name, value in (record | record.pop("metrics", {})).items():
                if value == value and (kind, name) != ("eval", "epoch"):
                    curves.setdefault(f"{kind}/{name}", {})[step] = pytest.approx(value, rel=1e-5)
    return curves


def test_every_number_of_every_run_is_there(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    assert cli(*compare_two, "--output", tmp_path / "plain").exit_code == 0
    found = cli(*compare_two, "--output", tmp_path / "out", *TENSORBOARD)
    assert found.exit_code == 0, found.stderr
    assert numbers(tmp_path / "out/results.jsonl") == numbers(tmp_path / "plain/results.jsonl")
    runs = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert len(runs) == 4
    for run in runs:
        (folder,) = (tmp_path / "out/tracking").glob(f"{run['method'].split(':')[0]}*seed-{run['seed']}-n=16")
        assert scalars(folder) == recorded(run)


@pytest.mark.slow
def test_a_resumed_run_shows_each_step_once(cli: Cli, common: list[str], tmp_path: Path) -> None:
    train = ["train", *common, "--output", tmp_path / "out", *TENSORBOARD, "--checkpoint-every", "2"]
    broken = signalled(signal.SIGKILL, 6, *train)  # five are sent, four are in the checkpoint
    assert broken.returncode == -signal.SIGKILL
    started_within(3, tmp_path / "out/tracking/out")
    assert cli(*train, "--resume").exit_code == 0
    run = json.loads((tmp_path / "out/history.json").read_text())
    assert scalars(tmp_path / "out/tracking/out") == recorded(run)


@pytest.mark.slow
def test_a_clock_that_was_set_back_is_told(cli: Cli, common: list[str], tmp_path: Path) -> None:
    train = ["train", *common, "--output", tmp_path / "out", *TENSORBOARD, "--checkpoint-every", "2"]
    signalled(signal.SIGKILL, 6, *train)
    started_within(3600, tmp_path / "out/tracking/out")
    found = cli(*train, "--resume")
    assert found.exit_code == 2
    assert "s ahead of the clock" in found.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "tensorbored"], "--track tensorbored: there is no such tracker; choose among aim, "),
        (["--track", "aim"], "--track aim: its library is not installed; pip install aim"),
        (["--track", "tensorboard,tensorboard"], "--track: tensorboard is there twice"),
        ([*TENSORBOARD, "--launcher", "ray"], "machines need not share a disk"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_refused_first(
    cli: Cli, compare_two: list[str], tmp_path: Path, options: list[str], message: str
) -> None:
    if "ray" in options:
        pytest.importorskip("ray", reason="needs the extra 'ray'")
    found = cli(*compare_two, "--output", tmp_path / "out", *options)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not (tmp_path / "out").exists()
