"""``deltasam demo``: a comparison in minutes that shows where it helps."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer


def demo(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("runs/wrong-labels"),
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each with its share of the cores.")] = 2,
) -> None:
    """Real tweets, once with wrong labels and once as they are: plain training, SAM, and per-instance SAM.

    Needs no data and no download; six minutes on two free CPU cores. Ends in a table for each, what they show at the
    epoch that noisy rows choose and at the last one, and a report.

    It is a [bold]deltasam compare[/bold] with the options of a file, whose name is printed: copy it, change it, give it
    to [bold]--config[/bold].

    [bold]Examples[/bold]

    deltasam demo

    deltasam compare --config runs/wrong-labels/config.yaml --seeds 5,6,7,8,9 --output runs/other-seeds
    """
    with as_file(files("deltasam.cli") / "demo.yaml") as path:
        arguments = ["compare", "--config", str(path), "--output", str(output), "--workers", str(workers)]
        print(f"deltasam {shlex.join(arguments)}", file=sys.stderr)
        ctx.find_root().command.main(arguments, prog_name="deltasam", standalone_mode=False)
