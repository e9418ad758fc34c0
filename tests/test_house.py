"""The rooms of the house: who may import whom, and how full a room may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "deltasam"
LAYERS = ({"core", "errors"}, {"per_example"}, {"methods"}, {"diagnostics", "integrations"}, {"lab"}, {"cli"})
"""From the lowest to the highest; a layer imports from itself and from those below."""
# The files of the root: what a method is stands below the methods, and the package's face above them.
OF_THE_ROOT = {"method": 2, "schedules": 2, "scheduled": 2, "spec": 2, "reference": 2, "": 2, "__main__": 5}


def _modules() -> dict[str, Path]:
    """Every module of the package, by its name without ``deltasam.``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(module: str, tree: ast.AST | None = None) -> Iterator[str]:
    """The modules that one imports anywhere: in functions, and for type checkers only, as well."""
    for node in ast.walk(tree or ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (_known(a.name) for a in node.names if a.name.partition(".")[0] == "deltasam")
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] == "deltasam"):
            assert not node.level, f"{module} imports by dots"
            yield from {_known(f"{node.module}.{a.name}") for a in node.names}


def _known(name: str) -> str:
    """The module that a dotted name is, or is in."""
    name = name.partition(".")[2]
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def _layer(module: str) -> int:
    room = module.partition(".")[0]
    return OF_THE_ROOT[room] if room in OF_THE_ROOT else next(i for i, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_from_above(module: str) -> None:
    # A type for the checker is no dependency of the running program, but one of the reader.
    above = {other for other in _imports(module) if _layer(other) > _layer(module)}
    assert not above


def test_neighbours_do_not_know_each_other() -> None:
    for module in MODULES:
        rooms = {module.partition(".")[0], *(other.partition(".")[0] for other in _imports(module))}
        assert not rooms >= {"diagnostics", "integrations"} or _layer(module) > 3, module


def test_no_circle() -> None:
    graph = {module: set(_imports(module)) - {module} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_room_is_too_full() -> None:
    rooms = {path.parent for path in MODULES.values()}
    sizes = {str(room.relative_to(PACKAGE)): len(list(room.glob("*.py"))) for room in rooms}
    assert sizes.pop(".") <= 8
    assert max(sizes.values()) <= 20, sizes


def test_an_import_from_above_would_be_seen() -> None:
    text = (
        "def f():\n    from deltasam.lab.train import run\n    import deltasam.cli.app\nfrom deltasam.core import warn"
    )
    found = set(_imports("core.passes", ast.parse(text)))
    assert found == {"lab.train.run", "cli.app", "core.warn"}
    assert [_layer(m) for m in sorted(found)] == [5, 0, 4]
