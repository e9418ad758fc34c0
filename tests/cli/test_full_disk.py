"""No room on the disk: one line says what, where and how to go on, and that works; what was finished is kept."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Cli
from deltasam.core.files import CannotWriteError, cannot_write, replacing
from deltasam.core.tensor_files import write_tensors
from deltasam.lab.train.tasks import text
from interrupted import numbers


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing more bytes than this to a file fails for every library, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def no_room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """From now on there is no room for files whose names begin so; None: for all there is."""
    replace = os.replace

    def patch(name: str | None) -> None:
        def put(source: Any, target: Any) -> None:
            if name is not None and Path(target).name.startswith(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            replace(source, target)

        monkeypatch.setattr(os, "replace", put)

    return patch


def refused(done: Any) -> str:
    assert done.exit_code == 2, (done.exit_code, done.exception, done.stderr)
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return str(error)


def test_a_real_write_that_fails(cli: Cli, common: list[str], tmp_path: Path) -> None:
    command = ["train", *common, "--output", tmp_path / "out"]
    with files_up_to(20_000):
        error = refused(cli(*command))
    remedy = f"free some space; go on with the same command and --resume (output {tmp_path / 'out'})"
    assert error == f"error: cannot write the model to {tmp_path / 'out'}: File too large; {remedy}"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.yaml"}
    assert cli(*command, "--resume").exit_code == 0


def test_a_real_checkpoint_that_fails(tmp_path: Path) -> None:
    """PyTorch says nothing of the disk in its own error."""
    with files_up_to(20_000), pytest.raises(CannotWriteError) as caught:
        write_tensors(tmp_path / "x.pt", {"weight": torch.zeros(100_000)})
    remedy = "free some space or choose another --output"
    assert str(caught.value) == f"cannot write {tmp_path / 'x.pt'}: File too large; {remedy}"
    assert not list(tmp_path.iterdir())


def test_the_model_and_the_checkpoint_from_before_stay(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room_for: Callable[..., None]
) -> None:
    accuracies = iter((0.6, 0.7, 0.7, 0.6, 0.7))  # the second model is better, so that it is to be saved
    true = text.evaluate_all
    kept: dict[str, bytes] = {}

    def evaluate_all(*args: Any) -> dict[str, float]:
        accuracy = next(accuracies)
        if accuracy == 0.7 and not kept:
            no_room_for("model.safetensors")
            kept.update({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
        return {**true(*args), "accuracy": accuracy}

    monkeypatch.setattr(text, "evaluate_all", evaluate_all)
    command = ["train", *common]
    error = refused(cli(*command, "--output", tmp_path / "out"))
    assert "cannot write the model to" in error
    assert "No space left on device; free some space; go on with the same command and --resume" in error
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == kept
    assert {"model.safetensors", "checkpoint.pt", "config.yaml"} <= kept.keys()
    no_room_for(None)
    assert cli(*command, "--output", tmp_path / "out", "--resume").exit_code == 0
    assert cli(*command, "--output", tmp_path / "whole").exit_code == 0
    assert numbers(tmp_path / "out/history.json") == numbers(tmp_path / "whole/history.json")
    found, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert found == expected


@pytest.mark.parametrize("name", ["config.yaml", "checkpoint.pt", "examples.csv", "history.json", "metrics.json"])
def test_train_goes_on(
    cli: Cli, common: list[str], tmp_path: Path, no_room_for: Callable[..., None], name: str
) -> None:
    command = ["train", *common, "--output", tmp_path / "out"]
    no_room_for(name)
    error = refused(cli(*command))
    assert f"cannot write {tmp_path / 'out' / name}: No space left on device; free some space; " in error
    assert not list(tmp_path.rglob("*.partial"))
    no_room_for(None)
    begun = name != "config.yaml"
    said = "go on with the same command and --resume" if begun else "nothing is kept yet, start again with the same"
    assert said in error
    assert cli(*command, *(["--resume"] if begun else [])).exit_code == 0


@pytest.mark.parametrize("name", ["config.yaml", "checkpoint-", "erm-", "results.jsonl", "report.html"])
def test_compare_goes_on(
    cli: Cli, compare_two: list[str], tmp_path: Path, no_room_for: Callable[..., None], name: str
) -> None:
    command = [*compare_two, "--seeds", "0", "--output", tmp_path / "out"]
    no_room_for(name)
    error = refused(cli(*command))
    assert error.startswith(f"error: cannot write {tmp_path / 'out'}")
    assert error.endswith(": No space left on device; free some space; go on with the same command")
    no_room_for(None)
    assert cli(*command).exit_code == 0
    assert len(numbers(tmp_path / "out/results.jsonl")) == 2
    assert (tmp_path / "out/report.html").exists()


@pytest.mark.slow
def test_a_worker_that_has_no_room_says_so(cli: Cli, compare_two: list[str], tmp_path: Path) -> None:
    """What fails in its process comes back whole."""
    command = [*compare_two, "--methods", "erm", "--workers", "2", "--output", tmp_path / "out"]
    with files_up_to(20_000):  # for processes that are started inside too
        error = refused(cli(*command))
    assert error.startswith(f"error: cannot write {tmp_path / 'out' / 'checkpoint-erm-'}")
    assert error.endswith(": File too large; free some space; go on with the same command")


def test_what_has_nothing_to_go_on_with(
    cli: Cli, compare_two: list[str], tmp_path: Path, no_room_for: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    assert cli(*compare_two, "--seeds", "0", "--methods", "erm", "--output", run).exit_code == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    no_room_for("new")
    for command in (["report", run, "--output"], ["examples", run, "--output"]):
        error = refused(cli(*command, tmp_path / "new.csv"))
        remedy = "free some space or choose another --output"
        assert error == f"error: cannot write {tmp_path / 'new.csv'}: No space left on device; {remedy}"
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_what_diagnose_has_measured_is_kept(
    cli: Cli, common: list[str], tmp_path: Path, no_room_for: Callable[..., None]
) -> None:
    assert cli("train", *common, "--output", tmp_path / "model").exit_code == 0
    data = common[: common.index("--model")]
    command = ["diagnose", tmp_path / "model", *data, "--only", "calibration,slice", "--examples", "8"]
    command += ["--output", tmp_path / "out"]
    no_room_for("calibration.png")
    assert refused(cli(*command)).endswith(
        "free some space; nothing is measured yet, start again with the same command"
    )
    no_room_for("slice.png")
    assert refused(cli(*command)).endswith(f"free some space; what was measured so far is in {tmp_path / 'out'}")
    no_room_for(None)
    assert cli(*command).exit_code == 0


def test_a_library_that_writes_by_itself(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_all(*args: Any) -> dict[str, float]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/cache")

    monkeypatch.setattr(text, "evaluate_all", evaluate_all)
    error = refused(cli("train", *common, "--output", tmp_path))
    assert error.startswith("error: cannot write /a/cache: No space left on device; free some space; go on with")


def test_other_errors_of_the_system_stay_what_they_are(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_all(*args: Any) -> dict[str, float]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/a/cache")

    monkeypatch.setattr(text, "evaluate_all", evaluate_all)
    assert isinstance(cli("train", *common, "--output", tmp_path).exception, OSError)


def test_reasons_and_remedies(tmp_path: Path) -> None:
    """Of the system, of a library in Rust, and of one that keeps the system's reason behind its own."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    behind = RuntimeError("unexpected pos 704 vs 598")
    behind.__context__ = full
    for error in (full, ValueError("serializing: I/O error: No space left (os error 28)"), behind):
        made = cannot_write("x", error)
        assert str(made) == "cannot write x: No space left on device; free some space or choose another --output"
        assert made.and_then("again") == "cannot write x: No space left on device; free some space; again"
    with pytest.raises(CannotWriteError) as caught, replacing(tmp_path / "file" / "in") as _:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    other = str(caught.value)
    assert other.endswith("/file/in: Permission denied; make it writable or choose another --output")
    assert caught.value.and_then("again") == other
    again = pickle.loads(pickle.dumps(caught.value))  # a worker sends it
    assert (type(again), str(again)) == (CannotWriteError, other)
