"""The additions that ``docs/extend`` walks through, each saved as a file and used as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import forked

pytestmark = pytest.mark.slow

PAGES = Path(__file__).parents[1] / "docs" / "extend"


def saved(page: str, folder: Path) -> Path:
    """The first block of a page, under the name that the page gives it."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    (name,) = set(re.findall(r"[Ss]ave it as\s+`(\w+\.py)`", text))
    block = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    path = folder / name
    path.write_text(block[1], encoding="utf-8")
    return path


def deltasam(*arguments: object) -> str:
    """In a process of its own, since a plugin stays in the registries."""
    done = forked.deltasam(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


SHORT = ("--epochs", "1", "--max-length", "8")


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for label in ("good", "bad"):
        (tmp_path / "reviews" / label).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "reviews" / label / f"{number}.txt").write_text(f"a {label} film {number}", encoding="utf-8")
    return tmp_path / "reviews"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [(f"a {label} film {n}", label) for label in ("good", "bad") for n in range(8)]
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "\n".join(map(",".join, rows)), encoding="utf-8")
    return path


def test_a_data_source(class_folders: Path, tiny_model: Path, tmp_path: Path) -> None:
    plugin, out = saved("data_source", tmp_path), tmp_path / "out"
    deltasam("--plugin", plugin, "train", "--data", f"classes:{class_folders}", "--model", tiny_model, *SHORT,
             "--output", out)  # fmt: skip
    examples = (out / "examples.csv").read_text(encoding="utf-8")
    assert "a good film" in examples
    assert "a bad film" in examples


def test_a_task(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Its losses are not those of cross entropy, and they are what is trained."""
    common = ("train", "--data", table, "--model", tiny_model, *SHORT)
    deltasam("--plugin", saved("task", tmp_path), *common, "--output", tmp_path / "focal")
    deltasam(*common, "--output", tmp_path / "plain")
    focal, plain = (
        [step["loss"] for step in json.loads((tmp_path / name / "history.json").read_text("utf-8"))["steps"]]
        for name in ("focal", "plain")
    )
    assert 0 < focal[0] < 0.6 * plain[0]


def test_a_diagnostic(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    deltasam("train", "--data", table, "--model", tiny_model, *SHORT, "--output", tmp_path / "out")
    plugin = saved("diagnostic", tmp_path)
    said = deltasam("--plugin", plugin, "diagnose", tmp_path / "out", "--data", table, "--only", "margin",
                    "--max-length", "8", "--output", tmp_path / "diagnosis")  # fmt: skip
    assert "mean margin" in said
    page = (tmp_path / "diagnosis" / "diagnosis.html").read_text(encoding="utf-8")
    assert "The right class is ahead by" in page
    assert "Share of examples below each margin" in page


def test_a_chart(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    plugin, out = saved("chart", tmp_path), tmp_path / "runs"
    deltasam("--plugin", plugin, "compare", table, "--methods", "erm,sam", "--seeds", "0,1", "--model", tiny_model,
             *SHORT, "--train-size", "8", "--output", out)  # fmt: skip
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Gradient that is followed" in page
    assert "The norm of the gradient that sam follow" in page
