"""What ``import deltasam`` brings along, and what is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_import_loads_torch_and_nothing_heavier() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import deltasam
new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['deltasam']"


def test_every_file_of_the_package_is_installed() -> None:
    """An editable install hides what a wheel would lack."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    root = Path(__file__).parents[1]
    package = root / "src/deltasam"
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["deltasam"]
    installed = {path for pattern in ("**/*.py", *patterns) for path in package.glob(pattern)}
    there = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert there - installed == set()
