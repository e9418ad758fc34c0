"""Batches are made once for all passes of a step, and for a GPU while it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam.lab.data.dataset import TextData
from deltasam.lab.train.batches import Feed
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.run import Run


def test_a_batch_is_made_once_while_it_is_kept() -> None:
    made: list[str] = []

    def batch(key: str) -> dict[str, Tensor]:
        found = feed.batch(key, lambda: made.append(key) or {"ids": torch.tensor([len(made)])})
        assert list(found) == ["ids"]
        return found

    feed = Feed("cpu", keep=2)
    first = batch("a")
    first.pop("ids")  # of no one else's
    for key in ("a", "b", "a", "b", "c", "b", "a"):
        batch(key)
    assert made == ["a", "b", "c", "a"]


@pytest.mark.parametrize("method", ["erm", "sam", "per_instance_sam", "delta_sam:weights=norms", "smart"])
def test_rows_are_collated_once_per_step(data: TextData, config: TrainConfig, method: str) -> None:
    run = Run(data, config, method, 0)
    batches, calls, forwards = run.task.train_batches, [], []
    collate = batches._collate
    batches._collate = lambda rows: (calls.append(len(rows)), collate(rows))[1]
    run.model.register_forward_hook(lambda *_: forwards.append(0))
    for step in (1, 2, 3):
        run.step()
        assert len(calls) == step
    assert method == "erm" or len(forwards) >= 2 * len(calls)


class _Gpu:
    """Notes what would be copied to a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copied: list[tuple[bool, str, bool]] = []
        self._pinned: set[int] = set()
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        real = Tensor.to

        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args and isinstance(args[0], torch.device) and args[0].type == "cuda":
                self.copied.append((id(tensor) in self._pinned, str(args[0]), kwargs.get("non_blocking", False)))
                return tensor
            return real(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, "to", to)

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(id(tensor))
        return tensor


def test_to_a_gpu_memory_is_pinned_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, feed = _Gpu(monkeypatch), Feed("cuda:1")
    feed.batch(0, lambda: {"ids": torch.ones(2), "mask": torch.ones(2)})
    assert gpu.copied == 2 * [(True, "cuda:1", True)]


def test_the_next_rows_are_made_ahead(data: TextData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Run(data, config, "sam", 0)
    wanted = [plain.step().loss for _ in range(plain.total_steps)]
    run = Run(data, config, "sam", 0)
    events: list[tuple[str, int]] = []
    batches = run.task.train_batches
    collate = batches._collate
    batches._collate = lambda rows: (events.append(("made", len(rows))), collate(rows))[1]
    run.optimizer.register_step_post_hook(lambda *_: events.append(("step", 0)))
    batches._feed._device = torch.device("cuda")
    run.device = "cuda"
    _Gpu(monkeypatch)
    losses = [run.step().loss for _ in range(run.total_steps)]
    assert losses == wanted
    names = [name for name, _ in events]
    assert names == ["made", *["step", "made"] * (run.total_steps - 1), "step"]
