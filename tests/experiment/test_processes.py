"""Two processes train as one does: same gradients, same metrics, one account of it, one message when it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltasam
import two_processes
from deltasam.errors import UserError
from deltasam.lab.data import TextData
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.checkpoint import resume_run
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.device import find_device, own_device
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run
from deltasam.lab.train.tasks import text
from distributed.launch import free_port, in_two, torchrun

pytestmark = pytest.mark.xdist_group("processes")  # one worker starts them all: see --dist loadgroup in the Makefile


@pytest.fixture(scope="module")
def still(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without dropout."""
    folder = tmp_path_factory.mktemp("still") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tiny_model: Path, still: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("two")
    for done in in_two(Path(two_processes.__file__), folder, free_port(), tiny_model, still, reviews):
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def config(still: Path) -> TrainConfig:
    return TrainConfig(model=str(still), epochs=2, batch_size=two_processes.ROWS, learning_rate=3e-3)


def numbers(path: Path) -> RunResult:
    result = RunResult.from_json(path.read_text())
    steps = [dataclasses.replace(s, seconds=0.0) for s in result.steps]
    return dataclasses.replace(result, steps=steps, seconds_per_step=0.0, peak_memory_mib=None)


@pytest.mark.parametrize("method", two_processes.METHODS)
def test_equal_one_process_with_the_whole_batch(
    folder: Path, data: TextData, config: TrainConfig, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "logits_of", text.logits_of)  # put back afterwards
    warnings.filterwarnings("ignore", "PerInstanceSAM goes one example at a time: as if")
    expected = two_processes.weights_and_facts(two_processes.exact_run(data, config, method), 2)
    for rank in (0, 1):
        exact = torch.load(folder / f"exact{rank}.pt", weights_only=True)[method]
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(exact["weights"][name], weight, rtol=1e-9, atol=1e-12, msg=name)
        for step, known in zip(exact["facts"], expected["facts"], strict=True):
            assert step == pytest.approx(known, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("method", two_processes.PER_PROCESS)
def test_each_process_perturbs_along_its_own_rows(
    folder: Path, data: TextData, config: TrainConfig, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "logits_of", text.logits_of)
    run = two_processes.exact_run(data, config, method)
    rows = run.rows(0)
    gradient: dict[str, torch.Tensor] = {}
    known: dict[str, dict[int, float]] = {"loss": {}, "weight": {}, "norm": {}}
    (last,) = run.rows(1)  # in the second step, which one process goes through without a row of its own
    for mine in (rows[:16], rows[16:], [last]):
        run.model.zero_grad()
        step = deltasam.make_method(method, run.model).backward(run.closure(mine))
        for name, p in run.model.named_parameters():
            if mine != [last]:
                gradient[name] = gradient.get(name, 0) + p.grad * len(mine) / len(rows)  # type: ignore[operator]
        none = torch.empty(0)
        weights, norms = (step.metrics.get(name, none) for name in ("weights", "example_norms"))
        for name, values in {"loss": run.closure(mine)().loss, "weight": weights, "norm": norms}.items():
            known[name] |= dict(zip(mine, values.tolist(), strict=False))
    for rank in (0, 1):
        exact = torch.load(folder / f"exact{rank}.pt", weights_only=True)[method]
        assert exact["rows"] == rows
        for name, value in gradient.items():
            torch.testing.assert_close(exact["grad"][name], value, rtol=1e-9, atol=1e-12, msg=name)
        assert exact["examples"]["visits"].tolist() == [1] * 32
        for name, values in known.items():
            kept = exact["examples"]["values"].get(name, torch.empty(1, 0))[0].tolist()
            assert kept == pytest.approx([values[row] for row in sorted(values)], rel=1e-9)
    weighting = 32 if method.startswith("delta_sam") else 0
    assert {name: len(values) for name, values in known.items()} == {
        "loss": 32, "weight": weighting, "norm": weighting
    }  # fmt: skip


def test_same_head_and_other_masks(
    found: list[dict[str, Any]], data: TextData, config: TrainConfig, tiny_model: Path
) -> None:
    run = Run(data, dataclasses.replace(config, model=str(tiny_model)), "erm", 3)
    alone = torch.rand(1).item()
    assert found[0]["head"] == found[1]["head"] == run.model.classifier.weight.tolist()
    assert found[0]["draw"] == alone
    assert found[1]["draw"] != alone


def test_metrics_are_those_of_one_process(
    found: list[dict[str, Any]], data: TextData, config: TrainConfig, tiny_model: Path
) -> None:
    run = Run(data, dataclasses.replace(config, model=str(tiny_model)), "erm", 3)
    for size in two_processes.SIZES:
        expected = two_processes.metrics(run, size)
        assert found[0]["metrics"][str(size)] == found[1]["metrics"][str(size)] == expected


def test_what_is_averaged(found: list[dict[str, Any]]) -> None:
    assert found[0]["averaged"] == found[1]["averaged"] == [[[1.5, 1.5]], [[0.5, 0.5]], None, [0.0, 0.0]]


def test_killed_and_resumed_equals_unbroken(folder: Path, found: list[dict[str, Any]]) -> None:
    assert (found[0]["code when killed"], found[1]["code when killed"]) == (-signal.SIGKILL, 2)
    assert found[0]["steps when killed"] == 6
    assert found[0]["killed"][0] == found[1]["killed"][0] == 0, found[0]["killed"]
    assert numbers(folder / "killed0/history.json") == numbers(folder / "whole0/history.json")
    broken, whole = ((folder / name / "model.safetensors").read_bytes() for name in ("killed0", "whole0"))
    assert broken == whole
    assert not (folder / "killed0/checkpoint.pt").exists()
    broken, whole = ((folder / name / "examples.csv").read_bytes() for name in ("killed0", "whole0"))
    assert broken == whole


def test_only_the_main_process_writes(folder: Path, found: list[dict[str, Any]]) -> None:
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["compared0", "killed0", "whole0"]
    written = {"config.yaml", "report.html", "results.jsonl", "examples"}
    assert {p.name for p in (folder / "compared0").iterdir()} == written
    assert len(list((folder / "compared0/examples").iterdir())) == 2
    assert found[0]["compared"][0] == found[1]["compared"][0] == 0
    assert "per_instance_sam" in found[0]["compared"][1]
    assert found[1]["compared"][1] == ""
    lines = [line for line in (folder / "compared0/results.jsonl").read_text().split("\n") if line]
    assert [RunResult.from_json(line).method.partition(":")[0] for line in lines] == ["erm", "per_instance_sam"]


def test_what_one_refuses_all_refuse(found: list[dict[str, Any]]) -> None:
    assert found[0]["refused"] == found[1]["refused"]
    refused = found[0]["refused"]
    assert refused["by one"] == "the second cannot (said by process 1 of 2)"
    assert refused["at the end"] == "at the very end (said by process 1 of 2)"
    assert refused["in a step"].startswith("per_instance_sam:")
    assert "m=4 must divide" in refused["in a step"]
    assert refused["in a step"].endswith("(said by process 1 of 2)")  # the first has 4 rows, the second 3
    assert "the run of process 0 was made with seed=0, now given 1; start every process" in refused["seed"]
    assert refused["device"].startswith("--device meta: several processes train on cpu or cuda")
    assert refused["wrong length"] == "--max-length 500: the model reads at most 128 tokens; give that or less"


def test_what_only_the_main_process_knows(found: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        code, _, stderr, _ = found[rank]["finished"]
        assert code == 2
        assert "whole0 is finished; choose another --output" in stderr


def test_fidelity_is_for_one_process(found: list[dict[str, Any]]) -> None:
    code, _, stderr, _ = found[0]["fidelity"]
    assert (code, stderr) == (
        2,
        "error: fidelity works in one process; start it without torchrun or accelerate launch\n",
    )


def test_another_number_of_processes_cannot_resume(folder: Path, data: TextData, tiny_model: Path) -> None:
    settings = TrainConfig(model=str(tiny_model), epochs=2, batch_size=7, learning_rate=3e-3)
    with pytest.raises(UserError, match="made with processes=2, now given 1"):
        resume_run(folder / "checkpoint.pt", Run(data, settings, "delta_sam:rho=0.05", 0))


def test_one_message_and_exit_code_2(reviews: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    train, _ = two_processes.commands(str(tiny_model), str(reviews))
    done = torchrun("-m", "deltasam", *train, "--output", tmp_path)
    assert done.returncode == 1  # torchrun's own
    ours, _, report = done.stderr.partition("\n")
    assert ours == f"error: the folder {tmp_path} already holds other files; choose another --output"
    assert "error:" not in report
    assert report.count("exitcode  : 2") == 2
    assert done.stdout == ""


def test_the_main_process_alone_is_heard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in "01":
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, rank)
        for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
            monkeypatch.setenv(name, value)
        with processes.quiet_unless_main():
            print("out of", rank)
            print("error of", rank, file=sys.stderr)
    assert capsys.readouterr() == ("out of 0\n", "error of 0\n")


def test_accelerate_that_started_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"started one; start them with torchrun"), processes.joined():
        pass


class _Gpus:
    """GPUs that a process sees, and what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.chosen: list[str] = []
        monkeypatch.setattr(torch.cuda, "set_device", self.chosen.append)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        number = lambda device: torch.device(device).index  # noqa: E731
        properties = lambda device: SimpleNamespace(uuid=names[number(device)])  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = _Gpus(monkeypatch, "first", "second")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cuda") == "cuda"
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda mine: [(mine[0], "first"), mine])
    assert own_device("cuda") == "cuda:1"
    assert gpus.chosen == ["cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "2")  # the third of three
    with pytest.raises(UserError, match="more processes than GPUs, of which there are 2; start one per GPU"):
        own_device("cuda")
    with pytest.raises(UserError, match="--device cuda:1: several processes train on cpu or cuda"):
        own_device("cuda:1")


def test_a_scheduler_shows_each_process_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _Gpus(monkeypatch, "that of this one")
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda mine: [(mine[0], "that of the other"), mine])
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cuda") == "cuda:0"


def test_a_device_is_tried_where_it_will_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it would take memory of a GPU that another process works on."""
    _Gpus(monkeypatch, "first", "second")
    tried: list[str] = []
    monkeypatch.setattr(torch, "empty", lambda size, device: tried.append(device))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert find_device("cpu") == "cpu"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert find_device("cuda") == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("cuda") == "cuda"
    assert find_device("cuda:0") == "cuda:0"
    assert tried == ["cpu", "cuda", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(("items", "sizes"), [(7, [3, 2, 2]), (6, [2, 2, 2]), (2, [1, 1, 0]), (0, [0, 0, 0])])
def test_parts_are_consecutive_and_even(items: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.part(range(items)))
    assert [len(p) for p in parts] == sizes
    assert [x for p in parts for x in p] == list(range(items))
