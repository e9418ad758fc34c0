"""The benchmarks run: on a device that is named, in the precision that is named, and their records say so."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cost
import gpu
import overhead
import place
from place import Place


def small() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 30000}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=1, num_labels=3, **sizes))


def run(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    main()


def test_cost_in_half_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(cost.MODELS, "minilm", small)
    seen: set[torch.dtype] = set()
    real = nn.Linear.forward

    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        seen.add((y := real(self, x)).dtype)
        return y

    monkeypatch.setattr(nn.Linear, "forward", linear)
    options = ("--shapes", "2x4", "--rounds", "1", "--methods", "sam,per_instance_sam", "--loop")
    run(cost.main, monkeypatch, *options, "--precision", "bf16", "--record", str(tmp_path / "cost.json"))
    record = json.loads((tmp_path / "cost.json").read_text())
    assert (record["device"], record["precision"]) == ("cpu", "bf16")
    assert list(record["seconds"]["2x4"]) == ["erm", "sam", "per_instance_sam", cost.PEER, cost.LOOP]
    assert seen == {torch.bfloat16}


def test_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(overhead.MODELS, "bert-1", overhead.bert(1))
    options = ("--models", "bert-1", "--rounds", "1", "--methods", "sam")
    run(overhead.main, monkeypatch, *options, "--device", "cpu", "--record", str(tmp_path / "overhead.json"))
    record = json.loads((tmp_path / "overhead.json").read_text())
    assert (record["device"], record["precision"]) == ("cpu", "fp32")
    assert record["counts"]["bert-1"]["sam"]["waits"] > 0


def test_everything_is_made_on_the_device() -> None:
    """The meta device stands for an accelerator."""

    def task() -> tuple[nn.Module, Callable[[], Tensor]]:
        model, x = nn.Linear(3, 2), torch.ones(4, 3)
        return model, lambda: model(x).sum(1)

    model, losses = Place("meta").task(task)()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert losses().device.type == "meta"


def test_the_clock_waits_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(place, "wait_for_device", lambda: waits.append(0))
    Place("cpu").clock()()
    assert not waits
    Place("cuda").clock("processor")()
    assert waits


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    place.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "cuda:99"])
    assert "cuda:99 cannot be used here" in capsys.readouterr().err


def test_everything_for_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        run(gpu.main, monkeypatch, "--device", "cpu", "--tiny", "--record", str(tmp_path / "gpu.json"))
    record = json.loads((tmp_path / "gpu.json").read_text())
    facts = {f"{section}: {name}": f for section, parts in record["sections"].items() for name, f in parts.items()}
    assert not {name: f for name, f in facts.items() if not f.get("ok", True)}
    assert end.value.code == 0
    assert list(record["sections"]) == ["exactness", "checks", "overhead", "steps"]
    assert record["precision"] == "fp32"
    assert record["tiny"]
    for parts in (record["sections"]["overhead"], record["sections"]["steps"]):
        assert all(list(part) == [*gpu.METHODS, cost.PEER] for part in parts.values())


def test_what_fails_and_what_there_was_no_time_for_is_in_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails() -> gpu.Facts:
        raise RuntimeError("out of luck")

    def takes_long() -> gpu.Facts:
        monkeypatch.setattr(gpu.time, "monotonic", lambda: 1e9)
        return {"ok": True}

    parts = [("checks", "first", fails), ("checks", "second", takes_long), ("steps", "third", fails)]
    monkeypatch.setattr(gpu, "parts", lambda *_: iter(parts))
    with pytest.raises(SystemExit) as end:
        run(gpu.main, monkeypatch, "--device", "cpu", "--record", str(tmp_path / "gpu.json"))
    assert end.value.code == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert found["checks"]["first"]["error"] == "RuntimeError: out of luck"
    assert found["checks"]["second"] == {"ok": True}
    assert found["steps"]["third"]["not run"] == "10 minutes were over"
