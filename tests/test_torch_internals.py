"""Private names of PyTorch stand in one folder, each with what it is for and what happens without it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

PACKAGE = Path(__file__).parents[1] / "src" / "deltasam"
INTERNALS = PACKAGE / "core" / "torch_internals"
# The oracle shares no code with what it is compared with, so it has its own few.
ORACLE = PACKAGE / "reference.py"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


LINEAR = nn.Linear(1, 1)
OF_OBJECTS = {
    name
    for thing in (LINEAR, LINEAR.weight, LINEAR(torch.ones(1)).grad_fn, torch.ones(1))
    for name in dir(thing)
    if _is_private(name)
}
"""Of tensors, modules and nodes of a graph, whatever they are called where they are used."""


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private names of PyTorch in a file: attributes, imports, and those that are looked up as text."""
    of_torch = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            of_torch.update(alias.asname or alias.name for alias in node.names)
            yield from filter(_is_private, [*(node.module or "").split("."), *(alias.name for alias in node.names)])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".") if alias.name.startswith("torch.")]
            yield from filter(_is_private, parts)
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            root: ast.AST = node.value
            own = isinstance(root, ast.Name) and root.id in ("self", "cls")
            own |= isinstance(root, ast.Call) and isinstance(root.func, ast.Name) and root.func.id == "super"
            while isinstance(root, ast.Attribute):
                root = root.value
            if (isinstance(root, ast.Name) and root.id in of_torch) or (node.attr in OF_OBJECTS and not own):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if text in OF_OBJECTS or (text.startswith("torch._") and " " not in text):
                yield text.split(".")[-1] if text in OF_OBJECTS else text.split(".")[1]


def _found(path: Path) -> set[str]:
    return set(private_names(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "path", sorted(set(PACKAGE.rglob("*.py")) - {ORACLE}), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_private_names_are_in_one_folder(path: Path) -> None:
    if path.parent != INTERNALS:
        assert not _found(path)


@pytest.mark.parametrize("path", sorted(INTERNALS.glob("*.py")), ids=lambda path: path.name)
def test_each_is_explained_where_it_is_used(path: Path) -> None:
    explained = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert not {name for name in _found(path) if f"{name}`" not in explained}


def test_a_private_name_would_be_seen() -> None:
    text = (
        "import torch\nfrom torch import nn\nfrom torch.utils import _pytree as tree\nimport torch._dynamo.x\n"
        "torch._foreach_add(a)\nmodule._parameters\nself._version\nsuper()._version\nt._version\nother._own\n"
        "nn.modules.dropout._DropoutNd\ngetattr(y, '_base')\nsys.modules['torch._inductor']\ntree._x\n"
    )
    expected = [
        "_DropoutNd",
        "_base",
        "_dynamo",
        "_foreach_add",
        "_inductor",
        "_parameters",
        "_pytree",
        "_version",
        "_x",
    ]
    assert sorted(private_names(ast.parse(text))) == expected
