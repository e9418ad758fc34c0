"""Every example runs, and what it asserts is true."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capfd: pytest.CaptureFixture) -> None:
    try:
        runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as missing:
        if missing.name in ("torch", "deltasam"):
            raise
        pytest.skip(f"{missing.name} is not installed")
    said = capfd.readouterr().out
    if said.startswith("skipped:"):
        pytest.skip(said.strip())
    assert said.count("\n") >= 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_recipes_lead_to_it(path: Path) -> None:
    text = path.read_text()
    assert "What one sees:" in text.partition('"""\n')[0]
    assert "    assert " in text
    assert f"(../../examples/{path.name})" in (ROOT / "docs/how-to/recipes.md").read_text()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10
