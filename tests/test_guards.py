"""What is put back: on which devices random states are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deltasam.core import restore as guards


def test_weights_that_are_kept_on_the_cpu_compute_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 with its weights offloaded: what is drawn in the forward comes from the mesh's device."""

    def sharded(kept: str, computes: str) -> Any:
        return SimpleNamespace(device=torch.device(kept), device_mesh=SimpleNamespace(device_type=computes))

    monkeypatch.setattr(guards, "is_sharded", lambda p: isinstance(p, SimpleNamespace))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: SimpleNamespace(current_device=lambda: 2))
    whole = nn.Parameter(torch.zeros(1))
    assert guards.accelerators([whole, sharded("cpu", "cpu")]) == set()
    assert guards.accelerators([whole, sharded("cpu", "cuda")]) == {torch.device("cuda:2")}
    assert guards.accelerators([sharded("cuda:1", "cuda"), sharded("cpu", "cuda")]) == {torch.device("cuda:1")}
