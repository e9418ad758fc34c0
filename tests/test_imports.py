"""What ``import deltasam`` brings along, and what is installed."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deltasam

PACKAGE = Path(deltasam.__file__).parent


def python(code: str, *path: Path) -> str:
    """What a program prints in a process of its own."""
    places = "".join(f"sys.path.insert(0, {str(p)!r})\n" for p in path)
    run = subprocess.run([sys.executable, "-c", f"import sys\n{places}{code}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.slow
def test_import_loads_torch_and_nothing_heavier() -> None:
    code = """
import torch
before = set(sys.modules)
import deltasam
from deltasam import *
new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    assert python(code) == "['deltasam']"


@pytest.mark.slow
def test_names_are_loaded_when_they_are_used() -> None:
    code = """
import deltasam
deltasam.__version__, deltasam.__doc__
assert "torch" not in sys.modules
from deltasam import SAM
assert {*deltasam.__all__, "__version__"} <= set(dir(deltasam))
assert deltasam.SAM is SAM is deltasam.Method.registry["sam"]
assert deltasam.weight_space is sys.modules["deltasam.core.vectors"]
assert not hasattr(deltasam, "Sam")
"""
    python(code)


@pytest.mark.slow
def test_whoever_gets_the_registry_finds_every_method_in_it() -> None:
    names = f"{len(deltasam.method_names())}"
    for code in (
        "import deltasam; found = deltasam.Method.registry",
        "from deltasam.spec import Method; found = Method.registry",
    ):
        assert python(f"{code}; print(len(found))") == names


def test_type_checkers_and_editors_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.asname or a.name for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    [exported] = [ast.literal_eval(node.value) for node in block.body if isinstance(node, ast.Assign)]
    assert seen == set(exported)
    missing = set(deltasam.__all__) - seen
    # Editors are glad of a line for a new method too, but it works without one.
    assert missing <= {cls.__name__ for cls in deltasam.Method.registry.values()}, "write them into the block"
    assert seen <= set(deltasam.__all__)


@pytest.mark.slow
def test_a_method_is_one_new_file(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "deltasam", ignore=shutil.ignore_patterns("__pycache__", "lab", "cli"))
    (tmp_path / "deltasam/methods/mine.py").write_text(
        "from deltasam.method import Method\n\n\nclass Mine(Method, name='mine'):\n    '''My own.'''\n"
    )
    code = """
import deltasam
print(deltasam.__file__, deltasam.Mine.name, deltasam.Method.registry["mine"] is deltasam.Mine, "Mine" in dir(deltasam))
"""
    assert python(code, tmp_path) == f"{tmp_path}/deltasam/__init__.py mine True True"


def test_every_file_of_the_package_is_installed() -> None:
    """An editable install hides what a wheel would lack."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    root = Path(__file__).parents[1]
    package = root / "src/deltasam"
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["deltasam"]
    installed = {path for pattern in ("**/*.py", *patterns) for path in package.glob(pattern)}
    there = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert there - installed == set()
