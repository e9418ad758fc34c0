"""A run that was broken off ends bit for bit as one that was not."""

from __future__ import annotations

import dataclasses
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

import deltasam
from deltasam.core.tensor_files import read_tensors
from deltasam.errors import UserError
from deltasam.lab.data import TextData
from deltasam.lab.train.checkpoint import resume_run, save_checkpoint, save_when_due
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.random_state import random_state, restore_random_state
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run, train_run


@pytest.fixture(scope="module")
def config(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, epochs=3)


def numbers(result: RunResult) -> str:
    steps = [dataclasses.replace(s, seconds=0.0) for s in result.steps]
    return repr(dataclasses.replace(result, steps=steps, seconds_per_step=0.0, peak_memory_mib=None))


METHODS = [*deltasam.method_names(), "delta_sam:weights=slopes", "sam@every=3", "per_instance_sam@last=0.5@warmup=10"]


@pytest.mark.parametrize(("method", "every"), [("erm", 0), ("delta_sam", 1), *((method, 4) for method in METHODS)])
def test_resumed_equals_unbroken(data: TextData, config: TrainConfig, tmp_path: Path, method: str, every: int) -> None:
    whole = Run(data, config, method, 0)
    expected = train_run(whole, on_step=lambda run: None, on_evaluation=lambda run: None)

    def on_step(run: Run) -> None:
        save_when_due(tmp_path / "checkpoint.pt", run, every)
        if len(run.steps) == 11:
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        train_run(Run(data, config, method, 0), on_step=on_step, on_evaluation=lambda run: None)
    torch.rand(3), random.random(), np.random.rand()  # whatever happens in between
    run = Run(data, config, method, 0)
    resume_run(tmp_path / "checkpoint.pt", run)
    assert len(run.steps) == {0: 6, 1: 11, 4: 8}[every]
    found = train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)
    assert numbers(found) == numbers(expected)
    assert found.table == expected.table
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_leaves_frozen_weights_out(data: TextData, config: TrainConfig, tmp_path: Path, old: bool) -> None:
    """Those of older versions have them."""
    top, path = dataclasses.replace(config, train_layers=1), tmp_path / "checkpoint.pt"
    whole = Run(data, top, "sam", 0)
    expected = train_run(whole, on_step=lambda run: None, on_evaluation=lambda run: None)
    broken = Run(data, top, "sam", 0)
    for _ in range(4):
        broken.step()
    save_checkpoint(path, broken)
    saved = read_tensors(path)
    left_out = set(broken.model.state_dict()) - set(saved["state"]["model"])
    assert left_out == {n for n in broken.model.state_dict() if "embeddings" in n or "layer.0" in n}
    if old:
        del saved["state"]["frozen"]
        saved["state"]["model"] = broken.model.state_dict()
        torch.save(saved, path)
    run = Run(data, top, "sam", 0)
    resume_run(path, run)
    assert numbers(train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)) == numbers(expected)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


def test_other_frozen_weights_are_refused(data: TextData, config: TrainConfig, tmp_path: Path) -> None:
    top, path = dataclasses.replace(config, train_layers=1), tmp_path / "checkpoint.pt"
    save_checkpoint(path, Run(data, top, "erm", 0))
    other = Run(data, top, "erm", 0)
    with torch.no_grad():
        other.model.get_input_embeddings().weight[3, 0] += 1e-3
    with pytest.raises(
        UserError, match=r"checkpoint.pt is of a model with other frozen weights; give the same --model, "
    ):
        resume_run(path, other)


def test_random_state_round_trip(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "state.pt")
    draws = torch.rand(2).tolist(), random.random(), np.random.rand(), np.random.randn()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (torch.rand(2).tolist(), random.random(), np.random.rand(), np.random.randn()) == draws


def test_the_random_state_of_a_gpu_is_restored_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    state, put = random_state(), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"state of {device}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append((state, device)))
    assert state["cuda"] == []
    of_gpu = random_state("cuda:3")
    assert of_gpu["cuda"] == ["state of cuda:3"]
    restore_random_state(of_gpu, "cuda:0")  # resumed where there are fewer
    restore_random_state({**of_gpu, "cuda": ["a", "b"]}, "cuda:1")  # of an older version, which kept those of all
    restore_random_state({**of_gpu, "cuda": ["a", "b"]}, "cuda:5")
    restore_random_state(of_gpu, "cpu")
    assert put == [("state of cuda:3", "cuda:0"), ("b", "cuda:1"), ("b", "cuda:5")]


def test_no_checkpoint_when_nothing_is_left_to_do(data: TextData, config: TrainConfig, tmp_path: Path) -> None:
    seen = []

    def on_step(run: Run) -> None:
        (tmp_path / "c.pt").unlink(missing_ok=True)
        save_when_due(tmp_path / "c.pt", run, 0)
        if (tmp_path / "c.pt").exists():
            seen.append(len(run.steps))

    train_run(Run(data, config, "erm", 0), on_step=on_step, on_evaluation=lambda run: None)
    assert seen == [6, 12]


@pytest.fixture
def saved(data: TextData, config: TrainConfig, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint.pt", Run(data, config, "erm", 0))
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "not a checkpoint", "empty"])
def test_damage_is_found(data: TextData, config: TrainConfig, saved: Path, damage: str) -> None:
    content = bytearray(saved.read_bytes())
    if damage == "cut":
        saved.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1  # in the middle of a weight: still a number, only another one
        saved.write_bytes(content)
    elif damage == "empty":
        saved.write_bytes(b"")
    else:
        torch.save({"other": torch.ones(3)}, saved)
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint.pt is damaged .*; delete .*checkpoint.pt"):
        resume_run(saved, Run(data, config, "erm", 0))


def test_code_in_a_checkpoint_is_not_run(data: TextData, config: TrainConfig, saved: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (saved.parent / "touched",))

    torch.save({"identity": {}, "state": Evil()}, saved)
    with pytest.raises(UserError, match="damaged"):
        resume_run(saved, Run(data, config, "erm", 0))
    assert not (saved.parent / "touched").exists()


@pytest.mark.parametrize(
    ("change", "method", "seed", "message"),
    [
        ({}, "sam:rho=0.1", 0, "method=erm, now given sam:rho=0.1,share=micro-batch"),
        ({}, "erm", 1, "seed=0, now given 1"),
        ({"learning_rate": 0.5}, "erm", 0, "learning_rate=0.003, now given 0.5"),
        ({"max_length": 32}, "erm", 0, "max_length=128, now given 32"),
    ],
)
def test_other_options_are_named(
    data: TextData, config: TrainConfig, saved: Path, change: dict[str, float], method: str, seed: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resume_run(saved, Run(data, dataclasses.replace(config, **change), method, seed))  # type: ignore[arg-type]


def test_full_disk_leaves_the_old_checkpoint(data: TextData, config: TrainConfig, saved: Path) -> None:
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = Run(data, config, "sam", 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # writing past it fails, as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write .*checkpoint.pt: .*free some space"):
            save_checkpoint(saved, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
