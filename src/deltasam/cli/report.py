"""``deltasam report``: one page from the output folders of other commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deltasam.errors import UserError
from deltasam.lab.folders.files import PAGE


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Output folders of compare, train or reproduce, finished or not.", metavar="RUN..."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The page.", show_default="report.html: in the folder, or of several folders right here"),
    ] = None,
) -> None:
    """Write one page about finished runs: what helped, by how much, how sure that is, and at what price.

    A folder of compare or reproduce gets its page anew. Several folders become one page: a table of all comparisons,
    then a part for each. Trainings with the same data and options, which differ in method or seed alone, are one
    comparison; nothing else is pooled. What is not finished is named and not judged; folders that hold no run are left
    out.

    [bold]Examples[/bold]

    deltasam report runs/demo

    deltasam report runs/*

    deltasam report runs/rho runs/noise --output both.html
    """
    from deltasam.lab.folders.contents import read_folders
    from deltasam.lab.report.page import write_comparisons, write_report, write_table_page

    path = _path(runs, output)
    contents = read_folders(runs)
    for note in contents.notes:
        print(f"note: {note}", file=sys.stderr)
    if table := contents.table:
        facts = {"about": table.about["about"], **table.facts}
        write_table_page(table.rows, table.about["title"], facts, path)
    elif contents.whole:
        results = [run for group in contents.groups for run in group.results]
        write_report(results, contents.groups[0].options, path)
    else:
        write_comparisons(contents.groups, contents.notes, path)
    print(f"Report: {path}")


def _path(runs: list[Path], output: Path | None) -> Path:
    """Where the page goes.

    Raises:
        UserError: It is a folder.
    """
    path = output or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    if path.is_dir():
        raise UserError(f"--output {path}: a folder; give the file, as in {path / PAGE}")
    return path
