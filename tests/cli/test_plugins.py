"""Methods of one's own, in files that the command line is given."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from deltasam.errors import UserError
from deltasam.lab.train.plugins import VARIABLE, use_plugins
from forked import deltasam

MINE = """
import deltasam
from deltasam.core.closure import loss_of


class Uphill(deltasam.Method, name="uphill"):
    \"\"\"The gradient, turned around: ``factor * grad L(w)``.\"\"\"

    neutral = {"factor": 1.0}

    def __init__(self, model, *, factor: float = -1.0):
        super().__init__(model)
        self.factor = factor

    def fill(self, passes):
        loss = loss_of(passes.plain_forward())
        passes.backward(self.factor * loss)
        return deltasam.Step(loss.detach())
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def compare(mine: Path, reviews: Path, tiny_model: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    data = [reviews, "--text", "review", "--label", "verdict", "--model", tiny_model, "--train-size", "16"]
    training = ["--epochs", "1", "--seeds", "0", "--methods", "erm,uphill,uphill:factor=1"]
    # In a process of its own: what a plugin defines stays in the registry.
    return deltasam("--plugin", mine, "compare", *data, *training, "--output", output, *more, COLUMNS="200")


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {run["method"]: run["metrics"] for run in map(json.loads, lines)}


@pytest.mark.slow
def test_stands_beside_the_others_and_is_part_of_what_decides_the_numbers(
    mine: Path, reviews: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = compare(mine, reviews, tiny_model, tmp_path / "out", "--workers", "2")
    assert done.returncode == 0, done.stderr
    found = metrics(tmp_path / "out")
    assert found["uphill:factor=1.0"] == found["erm"]
    assert found["uphill:factor=-1.0"] != found["erm"]
    assert "uphill:factor=1.0" in done.stdout
    mine.write_text(MINE.replace("self.factor * loss", "self.factor * loss.square()"), encoding="utf-8")
    done = compare(mine, reviews, tiny_model, tmp_path / "out")
    assert done.returncode == 2
    assert "was made with plugin mine.py=" in done.stderr


@pytest.mark.slow
def test_is_listed(mine: Path) -> None:
    assert (
        "The gradient, turned around: factor * grad L(w)."
        in deltasam("--plugin", mine, "methods", COLUMNS="200").stdout
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import deltasam\n\nx = 1 / 0\n", "mine.py, line 3: ZeroDivisionError: division by zero; correct it"),
        ("def f(:\n", "SyntaxError"),
        ("x = 1\n", "mine.py: defines no method; write class Mine(deltasam.Method, name='mine')"),
        (MINE.replace('"uphill"', '"sam"'), "the method name 'sam' is taken by SAM; choose another"),
        (None, "mine.py: cannot be read (No such file or directory); give a Python file"),
    ],
)
def test_errors_say_what_and_where(
    mine: Path, content: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    mine.unlink() if content is None else mine.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        use_plugins([mine])
