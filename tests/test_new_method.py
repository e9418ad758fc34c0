"""A method that is one new file in ``methods/``: the contracts, the command line and the site know it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend" / "method.md").read_text(encoding="utf-8")
CARD = """
    Looks ahead before it climbs.

    Cost: three passes.

    Source: made up, for this test.

    When: two looks are better than one.

    When not: time is short.

    Args:"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more file: the method of the page, with the paragraphs of a card."""
    source = tmp_path_factory.mktemp("new") / "src"
    shutil.copytree(ROOT / "src" / "deltasam", source / "deltasam", ignore=shutil.ignore_patterns("__pycache__"))
    found = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    text = found[1].replace("\n    Args:", CARD, 1)
    assert CARD in text
    (source / "deltasam" / "methods" / "two_step_sam.py").write_text(text, encoding="utf-8")
    return source


def output(package: Path, *command: str) -> str:
    path = os.pathsep.join(map(str, (package, ROOT / "site_pages", ROOT / "tests", ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line_knows_it(package: Path) -> None:
    assert re.search(r"two_step_sam\W+SAM along two gradients.*rho=0.05", output(package, "-m", "deltasam", "methods"))
    assert "rho / 2" in output(package, "-m", "deltasam", "methods", "two_step_sam")


def test_it_has_a_name_in_python_and_a_spec(package: Path) -> None:
    code = (
        "import deltasam, torch; from deltasam import TwoStepSAM; model = torch.nn.Linear(2, 1); "
        "print(TwoStepSAM(model).spec, deltasam.make_method('two_step_sam:rho=0.1', model).rho)"
    )
    assert output(package, "-c", code).split() == ["two_step_sam:rho=0.05", "0.1"]


def test_the_site_has_its_page_and_its_line_in_the_table(package: Path) -> None:
    code = "import made; pages = made.pages(); print(pages['methods/two_step_sam.md'], pages['methods/index.md'])"
    said = output(package, "-c", code)
    assert "Two looks are better than one" in said
    assert "reference.moved(w, g, reference.step(rho / 2, g))" in said
    assert re.search(r"\| \[`two_step_sam`\]", said)


def test_it_is_held_to_the_contracts(package: Path) -> None:
    path = " ".join(map(str, (package, *(ROOT / name for name in ("tests", "site_pages", "benchmarks")))))
    options = ["-q", "-p", "no:cacheprovider", "-o", f"pythonpath={path}", "-k", "two_step_sam and mlp"]
    said = forked.call(
        pytest.main, [*options, str(ROOT / "tests/test_contracts.py")], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    ).stdout
    passed = re.search(r"^(\d+) passed", said, re.MULTILINE)
    assert passed, said
    assert int(passed[1]) > 15
