"""``pytest tests/test_contracts.py --method-file mine.py``: the contracts on a method of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/extend/method.md").read_text(encoding="utf-8")
MINE = next(re.finditer(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))[1]


def contracts(folder: Path, code: str, which: str) -> str:
    (folder / "mine.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which]
    files = [str(TESTS / "test_contracts.py"), "--method-file", str(folder / "mine.py")]
    return subprocess.run([*command, *files], capture_output=True, text=True, cwd=TESTS.parent).stdout


def changed(old: str, new: str) -> str:
    assert old in MINE
    return MINE.replace(old, new)


def test_the_documented_method_keeps_them(tmp_path: Path) -> None:
    said = contracts(tmp_path, MINE, "mlp")
    passed = re.search(r"^(\d+) passed, \d+ deselected", said, re.MULTILINE)
    assert passed, said
    assert int(passed[1]) > 20


@pytest.mark.parametrize(
    ("old", "new", "contract"),
    [
        ("passes.descend(both, self.rho)", "passes.descend(both, self.rho / 2)", "test_equals_the_reference"),
        ("weight_space.plus(ascent, further)", "weight_space.plus(further, further)", "test_an_infinite_ascent"),
    ],
)
def test_a_wrong_one_does_not(tmp_path: Path, old: str, new: str, contract: str) -> None:
    said = contracts(tmp_path, changed(old, new), f"{contract} and mlp")
    assert re.search(rf"^FAILED .*{contract}.*two_step_sam", said, re.MULTILINE), said
    assert " passed" not in said


def test_one_without_a_reference_is_told_to_write_it(tmp_path: Path) -> None:
    said = contracts(tmp_path, changed("def two_step_sam(", "def another("), "mlp")
    assert "there is no function two_step_sam(losses, w, ...) beside the class TwoStepSAM" in said
