"""The page of the command line, from the application itself."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import typer

from deltasam.cli.app import app


def pages() -> dict[str, str]:
    """One page with a section for each command."""
    group = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    sections = [_section(f"deltasam {name}", command) for name, command in commands.items()]
    intro = "# Command line\n\nEvery command explains itself with `--help`. This page is made from that.\n"
    return {"reference/command_line.md": "\n".join([intro, _section("deltasam", group), *sections])}


def _section(name: str, command: Any) -> str:
    text, _, examples = _plain(command.help or command.callback.__doc__ or "").partition("**Examples**")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    shown = "```bash\n" + "\n".join(lines) + "\n```\n" if lines else ""
    return f"## {name}\n\n{text.strip()}\n\n{shown}\n{_parameters(command)}\n"


def _parameters(command: Any) -> str:
    panels: dict[str, list[str]] = defaultdict(list)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            panels["Arguments"].append(_row(f"`{parameter.name.upper()}`", parameter))
        elif not parameter.hidden:
            names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
            panels[getattr(parameter, "rich_help_panel", None) or "Options"].append(_row(names, parameter))
    head = "| name | what it does | default |\n|---|---|---|"
    tables = ["\n".join([f"**{panel}**\n\n{head}", *rows]) for panel, rows in panels.items()]
    return "\n\n".join(tables)


def _row(names: str, parameter: Any) -> str:
    return f"| {names} | {_cell(_plain(parameter.help or ''))} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    """As the help shows it: in words, as a value, or not at all."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.show_default is False or parameter.default is None or parameter.default is False:
        return ""
    return f"`{parameter.default}`" if not callable(parameter.default) else ""


def _plain(text: str) -> str:
    """Rich's markup as Markdown."""
    return re.sub(r"\[/?bold\]", "**", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
