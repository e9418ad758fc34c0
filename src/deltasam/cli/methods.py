"""``deltasam methods``: what there is to choose from."""

from __future__ import annotations

import inspect
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
        console.print(inspect.getdoc(cls), markup=False, highlight=False)
        return
    table = Table("method", "what its gradient is", "hyper-parameters and defaults")
    for method in deltasam.method_names():
        cls = deltasam.Method.registry[method]
        summary = (inspect.getdoc(cls) or "").partition("\n")[0].replace("``", "")
        defaults = ", ".join(f"{k}={v!r}" for k, v in deltasam.hyperparameters(cls).items())
        table.add_row(method, escape(summary), escape(defaults))
    console.print(table)
    console.print("Write a method as [bold]name:key=value,key=value[/bold]; what is left out has its default.")
