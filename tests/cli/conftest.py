"""A command line in this process, and arguments for little work."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from command_line import Cli
from deltasam.cli.app import app


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli() -> Cli:
    """Run ``deltasam`` with some arguments; gives ``exit_code``, ``stdout``, ``stderr``."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="session")
def common(tiny_model: Path, reviews: Path) -> list[str]:
    """The data, the model, and little work."""
    columns = ["--data", str(reviews), "--text", "review", "--label", "verdict"]
    return [*columns, "--model", str(tiny_model), "--batch-size", "8", "--learning-rate", "0.003", "--epochs", "2"]


@pytest.fixture(scope="session")
def compare_two(common: list[str]) -> list[str]:
    """A comparison of two methods, without its output."""
    return ["compare", *common, "--methods", "erm,delta_sam", "--seeds", "0,1", "--train-size", "16"]
