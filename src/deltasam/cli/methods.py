"""``deltasam methods``: what there is to choose from."""

from __future__ import annotations

import inspect
import textwrap
from typing import Annotated

import typer

import deltasam
from deltasam.cli.options import full_spec


def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.", show_default=False)] = None,
) -> None:
    """List every method with its hyper-parameters, or explain one.

    [bold]Examples[/bold]

    deltasam methods

    deltasam methods sam
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if name is not None:
        cls = deltasam.Method.registry[full_spec(name).partition(":")[0]]
        text = reflow(inspect.getdoc(cls) or "", console.width)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table("method", "what its gradient is", "hyper-parameters and defaults")
    for method in deltasam.method_names():
        cls = deltasam.Method.registry[method]
        summary = (inspect.getdoc(cls) or "").partition("\n")[0].replace("``", "")
        defaults = ", ".join(f"{k}={v!r}" for k, v in deltasam.hyperparameters(cls).items())
        table.add_row(method, escape(summary), escape(defaults))
    console.print(table)
    console.print("Write a method as [bold]name:key=value,key=value[/bold]; what is left out has its default.")


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
