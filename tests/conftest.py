from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny_bert


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker() -> None:
    # The models are tiny: more threads only fight each other, and the workers run side by side anyway.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> nn.Module:
    """A small classifier; ``classifier.losses`` gives its losses on ``batch``."""
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 6), torch.randint(0, 3, (8,))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.save_tiny_bert(tmp_path_factory.mktemp("model") / "tiny_bert")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")
