"""Every Python block in the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


class Model(nn.Module):
    """Takes a batch as a positional tensor, or as keyword arguments with labels, as in the documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.linear(x)
        return logits if labels is None else SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))


def namespace(block: str) -> dict[str, Any]:
    model = Model()
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    batch = {"x": x, "labels": y}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "deltasam": deltasam, "torch": torch, "F": F, "model": model, "batch": batch, "optimizer": optimizer,
        "method": deltasam.SAM(model), "scaler": torch.amp.GradScaler("cpu"),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "losses": lambda: F.cross_entropy(model(x), y, reduction="none"),
        "loader": [(x, y)] * 2 if "for x, y" in block else [batch] * 2,
    }  # fmt: skip


def trainer_names(block: str) -> dict[str, Any]:
    """What the pages on trainers train: a tiny BERT on random texts."""
    if "integrations.hf" not in block:
        return {}
    import tiny_trainers as tiny

    return {"model": tiny.model(), "model_init": tiny.new_model, "train_dataset": tiny.rows()}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.filterwarnings("ignore:DeltaSAM.*rounding")
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = namespace(block) | trainer_names(block)
    before = [p.detach().clone() for p in names["model"].parameters()]
    known = set(deltasam.Method.registry)
    try:
        exec(compile(block, "documentation", "exec"), names)
        for name in set(deltasam.Method.registry) - known:  # a method that the page defines must work
            method = deltasam.make_method(f"{name}:rho=0.1", names["model"])
            assert float(method.backward(names["losses"]).metrics["radius_ratio"]) == pytest.approx(1, abs=1e-4)
    finally:
        for name in set(deltasam.Method.registry) - known:
            del deltasam.Method.registry[name]
    if "optimizer.step()" in block:
        assert all(not torch.equal(p, b) for p, b in zip(names["model"].parameters(), before, strict=True))


def test_every_method_has_its_equation() -> None:
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/methods.md").read_text().split("\n## ")[0], re.MULTILINE)
    assert sorted(table) == sorted(deltasam.Method.registry)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 4


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 100


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_local_links(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link
