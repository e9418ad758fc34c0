"""The typer application, and how errors leave it."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import deltasam
from deltasam.cli.compare import compare
from deltasam.cli.demo import demo
from deltasam.cli.diagnose import diagnose
from deltasam.cli.errors import build_hint, full, install_hint, refusal
from deltasam.cli.examples import examples
from deltasam.cli.fidelity import fidelity
from deltasam.cli.methods import methods
from deltasam.cli.report import report
from deltasam.cli.reproduce import reproduce
from deltasam.cli.train import train
from deltasam.core.files import disk_is_full
from deltasam.errors import UserError


class Commands(TyperGroup):
    """Turns errors that the user can correct into one line on stderr and exit code 2."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # click's context is typer's
        """Run the chosen command."""
        try:
            with ExitStack() as stack:
                if "MASTER_ADDR" in os.environ:  # started by torchrun or accelerate
                    from deltasam.lab.train.distributed import joined

                    stack.enter_context(joined())
                return self._invoke(ctx)
        except UserError as error:
            message, code = f"error: {error}", 2
        except KeyboardInterrupt as error:
            message, code = f"stopped{error}", 130
        print(f"\n{message}" if code == 130 else message, file=sys.stderr)
        raise typer.Exit(code)

    def _invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except typer.Exit:  # that of --help too, which must not wait for PyTorch
            raise
        except OSError as error:
            if disk_is_full(error):
                raise full(error) from error
            raise
        except (ModuleNotFoundError, RuntimeError) as error:
            if hint := build_hint(error):
                raise UserError(hint) from error
            if isinstance(error, ModuleNotFoundError):
                raise UserError(install_hint(error)) from error
            if isinstance(error, deltasam.NotCoveredError):
                raise UserError(refusal(error)) from error
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deltasam {deltasam.__version__}")
        raise typer.Exit


@app.callback()
def _deltasam(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            help="Python file with methods of your own, which every command then knows by name; may be given several "
            "times.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fine-tune language models with sharpness-aware minimization, and see whether it helps.

    Start with [bold]deltasam demo[/bold]: it needs no data and no download.

    [bold]deltasam --plugin mine.py compare --methods erm,sam,mine[/bold] puts your own method beside the others.
    """
    if plugin:
        from deltasam.lab.train.plugins import use_plugins

        use_plugins(plugin)


for _command in (demo, train, compare, reproduce, report, fidelity, diagnose, examples, methods):
    app.command()(_command)
