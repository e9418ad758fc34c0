"""``deltasam methods``: the methods and their hyper-parameters."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import deltasam


class MethodText(NamedTuple):
    """A method as it describes itself."""

    name: str
    docstring: str
    defaults: dict[str, Any]


def methods(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Explain this method.", show_default=False)] = None,
) -> None:
    """List every method with its hyper-parameters, or explain one.

    [bold]Examples[/bold]

    deltasam methods

    deltasam methods sam
    """
    console = Console()
    described = methods_registered() if ctx.find_root().params["plugin"] else methods_in_source()
    known = {method.name: method for method in sorted(described)}
    if name is not None:
        plain = name if name in known else _registered(name)
        console.print(reflow(known[plain].docstring, console.width), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table("method", "what its gradient is", "hyper-parameters and defaults")
    for method in known.values():
        summary = method.docstring.partition("\n")[0].replace("``", "")
        defaults = ", ".join(f"{k}={v!r}" for k, v in method.defaults.items())
        table.add_row(method.name, escape(summary), escape(defaults))
    console.print(table)
    console.print("Write a method as [bold]name:key=value,key=value[/bold]; what is left out has its default.")


def _registered(spec: str) -> str:
    """The name in a spec; a UserError says what is wrong with it."""
    from deltasam.lab.train.variant import method_spec  # loads PyTorch

    return method_spec(spec).partition(":")[0]


def methods_registered() -> Iterator[MethodText]:
    """Every method there is, those of plugins too."""
    for name, cls in deltasam.Method.registry.items():
        yield MethodText(name, inspect.getdoc(cls) or "", deltasam.hyperparameters(cls))


def methods_in_source() -> Iterator[MethodText]:
    """The methods of this package, read from their files: importing them would take seconds."""
    for file in Path(deltasam.__file__).with_name("methods").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                for keyword in node.keywords:
                    if keyword.arg == "name":
                        name = ast.literal_eval(keyword.value)
                        yield MethodText(name, ast.get_docstring(node) or "", dict(_keyword_defaults(node)))


def _keyword_defaults(cls: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """The keyword-only arguments of ``__init__``; a method without one of its own has none."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                yield argument.arg, default and ast.literal_eval(default)


def reflow(docstring: str, width: int) -> str:
    """A docstring with its paragraphs, bullets and arguments broken anew to fit a width."""
    lines: list[str] = []
    for line in docstring.replace("``", "").splitlines():
        if lines and _continues(lines[-1], line):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.rstrip())
    return "\n".join(_wrapped(line, width) for line in lines)


def _continues(start: str, line: str) -> bool:
    """Whether a line belongs to the paragraph, bullet or argument that another one starts."""
    is_heading = start.endswith(":") and " " not in start
    if not line.strip() or not start or is_heading or _is_bullet(line):
        return False
    indent = _indent(line)
    return indent > _indent(start) or (indent == 0 and not _is_bullet(start))


def _wrapped(line: str, width: int) -> str:
    hang = " " * (_indent(line) + (2 if _is_bullet(line) else 4 if _indent(line) else 0))
    return textwrap.fill(line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)


def _is_bullet(line: str) -> bool:
    return line.lstrip().startswith("- ")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
