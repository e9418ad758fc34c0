"""Seed, save and restore the global random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: str = "cpu") -> dict[str, Any]:
    """The random state of Python, NumPy, PyTorch and a device, in types that ``torch.load(weights_only=True)`` reads.

    Args:
        device: The device of the run; other GPUs are not queried, which would take memory there.
    """
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.startswith("cuda") else [],
    }


def restore_random_state(state: dict[str, Any], device: str = "cpu") -> None:
    """Restore the state from ``random_state``, on whatever GPU the run now computes."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.startswith("cuda"):
        # Checkpoints of earlier versions hold the states of all GPUs.
        number = (torch.device(device).index or 0) if len(state["cuda"]) > 1 else 0
        torch.cuda.set_rng_state(state["cuda"][min(number, len(state["cuda"]) - 1)], device)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Use deterministic algorithms of PyTorch, which warns where it has none."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # costs time and changes no result
    try:
        yield
    finally:
        debugging.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
