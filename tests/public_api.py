"""Everything that users may rely on, as text: names, signatures, commands and their options.

PYTHONPATH=tests python -m public_api      writes tests/public_api.txt anew
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltasam
import deltasam.diagnostics
import deltasam.integrations

SNAPSHOT = Path(__file__).with_suffix(".txt")
EXTEND = Path(__file__).parents[1] / "docs" / "extend"


def describe() -> str:
    """The whole public interface, one thing a line."""
    return "\n".join([*_python(), *_command_line()]) + "\n"


def _python() -> Iterator[str]:
    below = [
        f"{package.__name__}.{module.name}"
        for package in (deltasam.diagnostics, deltasam.integrations)
        for module in pkgutil.iter_modules(package.__path__)
    ]
    for name in ("deltasam", "deltasam.diagnostics", *sorted(below)):
        module = importlib.import_module(name)
        for public in sorted(getattr(module, "__all__", ())):
            yield from _thing(f"{name}.{public}", getattr(module, public))
    for name, thing in sorted(_built_on().items()):
        yield from _thing(name, thing)


def _built_on() -> dict[str, Any]:
    """What the pages on extending import, beside those above."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in EXTEND.glob("*.md"))
    imports = re.findall(r"^from (deltasam\.(?:core|methods|lab)[\w.]*) import ([\w, ]+)", pages, re.MULTILINE)
    named = [(module, name) for module, names in imports for name in names.split(", ")]
    return {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in named}


def _thing(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing):
        yield _heading(name, thing)
        for attribute, value in sorted(_members(thing).items()):
            if isinstance(value, property):
                yield f"    {attribute}: property"
            elif callable(member := getattr(thing, attribute)):
                yield f"    {attribute}{_signature(member)}"
    elif callable(thing):
        yield f"def {name}{_signature(thing)}"
    else:
        yield f"{name}: {type(thing).__name__}"


def _heading(name: str, cls: type) -> str:
    """How it is made; of what builds on another library only on what, since that library decides the arguments."""
    foreign = any(c.__module__.partition(".")[0] not in ("deltasam", "abc", "builtins") for c in cls.__mro__)
    bases = ", ".join(f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in cls.__bases__ if c is not object)
    return f"class {name}{'' if foreign else _signature(cls)}" + (f" is a {bases}" if bases else "")


def _members(cls: type) -> dict[str, Any]:
    """Public members beyond those of a base that is listed itself, and of whatever trainer or module it builds on."""
    base = next((c for c in cls.__mro__[1:] if c.__name__ in _LISTED), None)
    own = [c for c in reversed(cls.__mro__) if c.__module__.startswith("deltasam")]
    own = [c for c in own if base is None or not issubclass(base, c)]
    return {k: v for c in own for k, v in vars(c).items() if not k.startswith("_")}


_LISTED = ("Method", "MethodTrainerMixin", "MethodArguments", "Runtime")


def _signature(thing: Any) -> str:
    try:
        text = str(inspect.signature(thing))
    except ValueError:  # built in C
        return "(...)"
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _command_line() -> Iterator[str]:
    from typer.main import get_command

    from deltasam.cli.app import app

    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        yield f"deltasam {name}"
        for parameter in command.params:
            yield f"    {' '.join(parameter.opts)}" + (f" [{parameter.default}]" if parameter.default else "")


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(), encoding="utf-8")
