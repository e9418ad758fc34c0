"""The Hugging Face trainer in two processes, each with half of the batch in two micro-batches."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_trainers as tiny
from deltasam.integrations.hf import Trainer, TrainingArguments
from distributed.launch import launch

pytestmark = pytest.mark.xdist_group("distributed")

# What does not depend on how the batch is cut, and what has a perturbation for each process.
APART = ["erm", "per_instance_sam:rho=0.1", "sam:rho=0.1,share=global", "asam:rho=0.5,share=global"]
OWN = ["sam:rho=0.1", "sam:rho=0.1,share=rank", "delta_sam:rho=0.1,weights=slopes"]


def train(folder: str, spec: str, size: int, count: int) -> Trainer:
    options: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
    if "RANK" in os.environ:
        options["ddp_backend"] = "gloo"
    args = TrainingArguments(**tiny.settings(folder, spec, max_steps=3, **options))
    trainer = Trainer(tiny.model(), args, train_dataset=tiny.rows(24))
    trainer.train()
    return trainer


def main(folder: str) -> None:
    """Run by each of the two."""
    torch.set_num_threads(1)
    gc.freeze()
    results: dict[str, Any] = {}
    for spec in (*APART, *OWN):
        trainer = train(folder, spec, 2, 2)
        logged = [{k: v for k, v in e.items() if "runtime" not in k} for e in trainer.state.log_history[:3]]
        results[spec] = tiny.weights_of(trainer.model), logged
    torch.save(results, Path(folder) / f"rank{trainer.args.process_index}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    launch(Path(__file__), folder)
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(2)]


def close(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("spec", [*APART, *OWN])
def test_all_processes_end_with_the_same(spec: str, ranks: list[Any]) -> None:
    (a, logged), (b, logged_there) = (rank[spec] for rank in ranks)
    assert torch.equal(a, b)
    assert logged == logged_there


@pytest.mark.parametrize("spec", APART)
def test_equals_one_process_with_the_whole_batch(spec: str, ranks: list[Any], tmp_path: Path) -> None:
    alone = train(str(tmp_path), spec, 8, 1)
    weights, logged = ranks[0][spec]
    assert close(weights, tiny.weights_of(alone.model)) < 1e-9
    for entry, expected in zip(logged, alone.state.log_history[:3], strict=True):
        if "perturbed_loss" in expected and "per_instance" not in spec:
            assert entry["ascent_norm"] == pytest.approx(expected["ascent_norm"], rel=1e-6)


@pytest.mark.parametrize("spec", OWN)
def test_a_perturbation_of_each_process_is_another_method(spec: str, ranks: list[Any], tmp_path: Path) -> None:
    assert close(ranks[0][spec][0], tiny.weights_of(train(str(tmp_path), spec, 8, 1).model)) > 1e-6


if __name__ == "__main__":
    main(sys.argv[1])
