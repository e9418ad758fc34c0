"""Options are declared once, as fields of dataclasses; and asking for help does not load PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from deltasam.cli.app import app
from deltasam.cli.options import only, options_from_fields, without
from deltasam.errors import UserError
from deltasam.lab.train.config import TrainConfig


@dataclass(frozen=True)
class MoreTraining(TrainConfig):
    """All options of a training, and one more."""

    gravity: float = field(default=9.81, metadata={"help": "Pull towards 0.", "panel": "Training"})


TRAINING = MoreTraining(epochs=7)


def options_of(command: object) -> set[str]:
    made = typer.main.get_command(_app(command))
    return {name for parameter in made.params for name in parameter.opts if name != "--help"}


def _app(command: object) -> typer.Typer:
    made = typer.Typer(add_completion=False)
    made.command()(command)  # type: ignore[type-var]
    return made


def test_a_field_more_is_an_option_more() -> None:
    @options_from_fields
    def before(*, training: TrainConfig) -> None: ...

    @options_from_fields
    def after(*, training: MoreTraining = TRAINING) -> None:
        print(training.gravity, training.epochs, training.batch_size)

    assert options_of(after) - options_of(before) == {"--gravity"}
    shown = CliRunner().invoke(_app(after), ["--help"], env={"COLUMNS": "200"}).stdout
    assert "Pull towards 0." in shown
    assert "[default: 9.81]" in shown
    assert CliRunner().invoke(_app(after), ["--gravity", "1.6", "--batch-size", "3"]).stdout == "1.6 7 3\n"


def test_every_training_option_is_one_of_train() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    fields = {name for name, f in TrainConfig.__dataclass_fields__.items() if "help" in f.metadata}
    assert {parameter.name for parameter in commands["train"].params} >= fields
    assert {parameter.name for parameter in commands["compare"].params} >= fields - {"patience"}


def test_a_command_may_take_some_of_the_fields() -> None:
    @options_from_fields
    def few(*, epochs: str = "many", training: Annotated[TrainConfig, only("precision", "device")]) -> None:
        print(epochs, training)

    @options_from_fields
    def most(*, training: Annotated[TrainConfig, without("precision", "device")]) -> None: ...

    assert options_of(few) == {"--epochs", "--precision", "--device"}
    assert options_of(most).isdisjoint({"--precision", "--device"})
    assert CliRunner().invoke(_app(few), ["--device", "x"]).stdout == f"many {TrainConfig(device='x')}\n"


def test_the_dataclass_refuses() -> None:
    @options_from_fields
    def command(*, training: TrainConfig) -> None: ...

    refused = CliRunner().invoke(_app(command), ["--epochs", "0"])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception) == "--epochs 0: must be 1 or more"


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "train --help", "methods", "methods sam", "train --epoch 3"]
)
def test_without_pytorch(arguments: str) -> None:
    code = (
        "import sys\n"
        "from deltasam.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: print(e.code)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ("2" if arguments == "train --epoch 3" else "0")


def test_help_lists_the_commands() -> None:
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.replace("│", " ").split())
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f" {name} {command.get_short_help_str(limit=60).removesuffix('...')}" in shown
