"""Every test of the engine runs with the forms that it has for large layers, too: the models here are small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deltasam.per_example import outer_products as outer


@pytest.fixture(autouse=True, params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "large":
        monkeypatch.setattr(outer, "SMALL", 0)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
