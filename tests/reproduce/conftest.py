"""A table that takes seconds: a preset, and folders with made-up data of two tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of GLUE."""
    folder = tmp_path_factory.mktemp("glue")
    draw = random.Random(0)
    for task, columns in {"cola": ("sentence",), "mrpc": ("sentence1", "sentence2")}.items():
        (folder / task).mkdir()
        for split, count in {"train": 60, "dev": 24}.items():
            rows = [_row(draw, columns, number % 2) for number in range(count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def _row(draw: random.Random, columns: tuple[str, ...], label: int) -> dict[str, Any]:
    words = ["good", "fine"] if label else ["bad", "poor"]
    return {**{c: f"it was {draw.choice(words)} {draw.randint(0, 99)}" for c in columns}, "label": label}


@pytest.fixture(scope="session")
def content(tiny_model: Path) -> dict[str, Any]:
    """What a preset's file says."""
    training = {"model": str(tiny_model), "epochs": 1, "batch_size": 8, "learning_rate": 3e-3, "evaluate_every": 0}
    return {
        "table": "glue",
        "title": "A tiny table",
        "about": "Made-up data.",
        "training": training,
        "train_size": 16,
        "seeds": [0, 1],
        "search": {"seeds": [7], "held_out": 16},
        "methods": {"erm": ["erm"], "sam": ["sam:rho=0.01", "sam:rho=0.1"], "asam": ["asam:rho=0.5"]},
        "rows": [
            {"name": "CoLA", "data": "cola"},
            {"name": "MRPC, noisy", "data": "mrpc", "label_noise": 0.25},
            {"name": "CoLA, noisy", "data": "cola", "label_noise": 0.25, "chosen_on": "CoLA"},
        ],
    }


@pytest.fixture(scope="session")
def preset_file(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
