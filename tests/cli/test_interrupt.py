"""Killed or interrupted in mid-run, the command goes on where it stopped and ends the same, bit for bit."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

import forked
from command_line import Cli
from deltasam.cli import main, options
from deltasam.cli.app import app
from deltasam.lab.train.results import StepRecord
from deltasam.lab.train.run import Run
from interrupted import numbers, signalled


@pytest.fixture(scope="module")
def unbroken(compare_two: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The numbers of the comparison that nothing interrupted."""
    return all_numbers(compare_two, tmp_path_factory.mktemp("whole"))


def all_numbers(command: list[str], folder: Path) -> list[str]:
    assert CliRunner().invoke(app, [*command, "--output", str(folder)]).exit_code == 0
    return numbers(folder / "results.jsonl")


@pytest.fixture(scope="module")
def long(compare_two: list[str]) -> list[str]:
    """A comparison that goes on long enough to be interrupted from outside."""
    return [*compare_two, "--methods", "erm", "--epochs", "60", "--checkpoint-every", "5"]


@pytest.fixture(scope="module")
def long_unbroken(long: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return all_numbers(long, tmp_path_factory.mktemp("long"))


@pytest.mark.slow
def test_ctrl_c_in_compare(cli: Cli, compare_two: list[str], unbroken: list[str], tmp_path: Path) -> None:
    broken = signalled(signal.SIGINT, 7, *compare_two, "--output", tmp_path / "broken")
    assert broken.returncode == 130
    assert "stopped; go on with the same command" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert len(numbers(tmp_path / "broken/results.jsonl")) == 1
    assert cli(*compare_two, "--output", tmp_path / "broken").exit_code == 0
    assert numbers(tmp_path / "broken/results.jsonl") == unbroken


@pytest.mark.slow
def test_kill_in_compare(cli: Cli, compare_two: list[str], unbroken: list[str], tmp_path: Path) -> None:
    every = ["--checkpoint-every", "1"]
    broken = signalled(signal.SIGKILL, 6, *compare_two, *every, "--output", tmp_path / "broken")
    assert broken.returncode == -signal.SIGKILL
    assert [p.name[:17] for p in (tmp_path / "broken").glob("*.pt")] == ["checkpoint-delta_"]
    assert cli(*compare_two, "--output", tmp_path / "broken").exit_code == 0
    assert numbers(tmp_path / "broken/results.jsonl") == unbroken
    assert not list((tmp_path / "broken").glob("*.pt"))


@pytest.mark.xdist_group("launchers")
@pytest.mark.parametrize("where", [["--workers", "2"], ["--launcher", "ray", "--workers", "2"]], ids=["local", "ray"])
def test_ctrl_c_with_workers_leaves_no_process(
    cli: Cli, long: list[str], long_unbroken: list[str], tmp_path: Path, where: list[str]
) -> None:
    if "ray" in where:
        pytest.importorskip("ray", reason="needs the extra 'ray'")
    mark, run = started(*long, "--output", tmp_path / "broken", *where)
    while not (("ray" in where and any("ray::_do" in p for p in marked(mark))) or list(tmp_path.rglob("*.pt"))):
        assert run.process.is_alive()
        time.sleep(0.02)
    assert len(marked(mark)) >= 2
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: every process of the command gets it
    done = run.end()
    assert done.returncode == 130, done.stderr
    assert "stopped; go on with the same command" in done.stderr
    assert "Traceback" not in done.stderr
    await_end(mark)
    assert cli(*long, "--output", tmp_path / "broken").exit_code == 0
    assert numbers(tmp_path / "broken/results.jsonl") == long_unbroken


@pytest.mark.xdist_group("launchers")
def test_workers_end_when_the_command_is_killed(compare_two: list[str], tmp_path: Path) -> None:
    mark, run = started(*compare_two, "--epochs", "9999", "--workers", "2", "--output", tmp_path / "out")
    while not list((tmp_path / "out").glob("*.pt")):
        assert run.process.is_alive()
        time.sleep(0.02)
    assert len(marked(mark)) >= 2
    run.process.kill()
    run.end()
    await_end(mark)


def started(*arguments: object) -> tuple[str, forked.Started]:
    """A command with a process group of its own, and what the processes that it starts have in their environment."""
    mark = f"DELTASAM_TEST={uuid.uuid4()}"
    variables = {"OMP_NUM_THREADS": "1", **dict([mark.split("=")])}
    return mark, forked.Started(forked.group_leader, *map(str, arguments), **variables)


def marked(mark: str) -> list[str]:
    """The processes that have this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


def await_end(mark: str) -> None:
    """Wait until no such process is left."""
    patience = time.monotonic() + 20
    while left := marked(mark):
        assert time.monotonic() < patience, left
        time.sleep(0.1)


@pytest.mark.slow
def test_kill_in_train(cli: Cli, common: list[str], tmp_path: Path) -> None:
    command = ["train", *common, "--method", "delta_sam", "--patience", "5"]
    broken = signalled(signal.SIGKILL, 6, *command, "--output", tmp_path / "broken")
    assert broken.returncode == -signal.SIGKILL
    again = cli(*command, "--output", tmp_path / "broken")
    assert again.exit_code == 2
    assert "unfinished; add --resume" in again.stderr
    other = cli(*command, "--output", tmp_path / "broken", "--resume", "--weight-decay", "0.5")
    assert "weight_decay=0.01, now given 0.5" in other.stderr
    assert cli(*command, "--output", tmp_path / "broken", "--resume").exit_code == 0
    assert cli(*command, "--output", tmp_path / "whole").exit_code == 0
    assert numbers(tmp_path / "broken/history.json") == numbers(tmp_path / "whole/history.json")
    found, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("broken", "whole"))
    assert found == expected


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Press Ctrl-C after so many steps; 0: never again."""
    step, taken = Run.step, []

    def patch(at: int) -> None:
        def counted(self: Run) -> StepRecord:
            taken.append(step(self))
            if len(taken) == at:
                raise KeyboardInterrupt
            return taken[-1]

        monkeypatch.setattr(Run, "step", counted)

    return patch


@pytest.mark.parametrize("at", [1, 6], ids=["before the first checkpoint", "after it"])
def test_ctrl_c_in_train(
    cli: Cli, common: list[str], tmp_path: Path, interrupt_at: Callable[[int], None], at: int
) -> None:
    interrupt_at(at)
    broken = cli("train", *common, "--output", tmp_path)
    assert broken.exit_code == 130
    assert "stopped; go on with the same command and --resume" in broken.stderr
    assert (tmp_path / "checkpoint.pt").exists() == (at == 6)
    interrupt_at(0)
    assert cli("train", *common, "--output", tmp_path, "--resume").exit_code == 0
    assert (tmp_path / "metrics.json").exists()


def test_ctrl_c_while_libraries_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "deltasam.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "deltasam.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nstopped; nothing was begun\n"


def test_ctrl_c_before_anything_is_written(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is advised works: there is nothing to resume."""
    with monkeypatch.context() as patch:
        patch.setattr(options.DataOptions, "load", _interrupted)
        broken = cli("train", *common, "--output", tmp_path / "out")
    assert broken.exit_code == 130
    assert "stopped; nothing is kept yet, start again with the same command" in broken.stderr
    assert "--resume" not in broken.stderr
    assert not (tmp_path / "out").exists()
    assert cli("train", *common, "--output", tmp_path / "out").exit_code == 0


def test_ctrl_c_after_everything_is_written(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasam.cli.data_text.majority_class_note", _interrupted)
    broken = cli("train", *common, "--output", tmp_path)
    assert broken.exit_code == 130
    assert f"stopped; the training is finished; model in {tmp_path}" in broken.stderr
    assert (tmp_path / "metrics.json").exists()


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_damaged_checkpoint(cli: Cli, common: list[str], tmp_path: Path, interrupt_at: Callable[[int], None]) -> None:
    interrupt_at(6)
    cli("train", *common, "--output", tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    done = cli("train", *common, "--output", tmp_path, "--resume")
    assert done.exit_code == 2
    assert f"the checkpoint {tmp_path / 'checkpoint.pt'} is damaged" in done.stderr
