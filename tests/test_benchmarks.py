"""The benchmarks run: on a device that is named, in the precision that is named, and their records say so."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cost
import gpu
import memory
import memory_plan
import overhead
import place
from memory_plan import Setting
from place import Place

pytestmark = pytest.mark.slow


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


TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "vocab_size": 200,
}


def setting(name: str, **others: Any) -> Setting:
    config = memory_plan.config_of(name)
    config.update(TINY if name == "bert-base" else {**TINY, "num_key_value_heads": 2})
    return Setting(config, **{"examples": 4, "tokens": 64, **others})


@pytest.mark.parametrize(
    ("name", "others", "tolerance"),
    [
        ("llama-1b", {}, 0.01),
        ("llama-1b", {"examples": 8, "tokens": 8}, 0.01),  # short: products of rows with rows
        ("llama-1b", {"lora": 4}, 0.02),  # adapters begin at 0, and so do gradients of half of them
        ("llama-1b", {"checkpointing": True}, 0.01),
        ("llama-1b", {"weights": torch.bfloat16}, 0.01),
        ("llama-1b", {"precision": "bf16"}, 0.01),
        ("bert-base", {}, 0.25),  # the last layer's rows are mostly 0, which the plan does not know
    ],
)
def test_the_plan_is_what_a_real_step_takes(name: str, others: dict[str, Any], tolerance: float) -> None:
    asked = setting(name, **others)
    planned = memory_plan.planned(asked)
    model, losses = asked.task()()
    for spec, need in planned.items():
        real = memory_plan.needs(spec, model, losses)
        assert real.peak <= need.peak + 1e-3 * real.peak
        assert need.peak == pytest.approx(real.peak, rel=tolerance)
    assert planned["per_instance_sam"].peak > planned["sam"].peak > planned["erm"].peak


def test_live_tensors_are_counted() -> None:
    known = torch.zeros(10)
    with memory_plan.Live([known]) as live:
        live.start()
        a = torch.zeros(100)
        with live.phase("inside"):
            b = a.view(10, 10) + 1
            b.mul_(2)
        del a, b
        known.add_(1)
    assert live.phases == {"between": 440, "inside": 840}
    assert live.bytes == 40


def test_the_largest_batch_is_the_last_that_fits() -> None:
    asked = setting("llama-1b")
    totals = {n: memory_plan.planned(dataclasses.replace(asked, examples=n), ["sam"])["sam"].total for n in (1, 5, 6)}
    assert memory_plan.largest_batch(asked, "sam", totals[6] - 1) == 5
    assert memory_plan.largest_batch(asked, "sam", totals[5]) == 5
    assert memory_plan.largest_batch(asked, "sam", totals[1] - 1) == 0


def test_a_plan_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting("llama-1b").config.save_pretrained(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    run(memory.main, monkeypatch, "--plan", str(tmp_path), "--batch", "2x64", "--lora", "4", "--room", "0.001")
    printed = capsys.readouterr().out
    assert "q_proj.lora_A.default.weight" in printed
    assert "dense" in printed
    assert "per_instance_sam" in printed
    with pytest.raises(SystemExit, match="neither a file nor a folder"):
        run(memory.main, monkeypatch, "--plan", "no-such-model")
