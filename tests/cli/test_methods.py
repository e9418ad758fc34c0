"""``deltasam methods`` and the way in: everything comes from the registry."""

from __future__ import annotations

import inspect
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deltasam
from command_line import Cli
from deltasam.cli.methods import methods_in_source, methods_registered, reflow
from deltasam.lab.train import plugins


def test_lists_every_registered_method(cli: Cli) -> None:
    shown = " ".join(cli("methods").stdout.replace("│", " ").split())
    for name in deltasam.method_names():
        cls = deltasam.Method.registry[name]
        assert f" {name} " in shown
        for key, value in deltasam.hyperparameters(cls).items():
            assert f"{key}={value!r}" in shown


def test_the_source_says_the_same_as_the_registry() -> None:
    assert sorted(methods_in_source()) == sorted(methods_registered())


def test_a_new_method_appears_by_itself(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(deltasam.SAM):
        """Follow my [own] idea."""

    monkeypatch.setitem(deltasam.Method.registry, "mine", Mine)
    monkeypatch.setattr(plugins, "use_plugins", lambda paths: None)
    assert "Follow my [own] idea." in cli("--plugin", tmp_path / "mine.py", "methods").stdout


def test_explains_one(cli: Cli) -> None:
    shown = cli("methods", "sam").stdout
    assert shown.split() == inspect.getdoc(deltasam.SAM).replace("``", "").split()  # type: ignore[union-attr]
    unknown = cli("methods", "smm")
    assert unknown.exit_code == 2
    assert "did you mean 'sam'?" in unknown.stderr


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", deltasam.method_names())
def test_explanations_fit_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli("methods", name).stdout.splitlines()
    assert max(map(len, lines)) <= width
    for line, after in itertools.pairwise(lines):
        if after[:1].isalnum() and line[:1].isalnum():  # within a paragraph there is no room for the next word
            assert len(line) + 1 + len(after.split()[0]) > width


def test_explanations_keep_their_form() -> None:
    docstring = """Do ``it``.

A paragraph of
two lines.

- one thing
  in two lines
- another

Args:
    rho: A radius, which is
        long.
    m: Short.

Raises:
    ValueError: Always.
"""
    assert reflow(docstring, 24).splitlines() == [
        "Do it.", "", "A paragraph of two", "lines.", "", "- one thing in two lines", "- another", "",
        "Args:", "    rho: A radius, which", "        is long.", "    m: Short.", "",
        "Raises:", "    ValueError: Always.",
    ]  # fmt: skip


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"deltasam {deltasam.__version__}\n"


@pytest.mark.parametrize("command", ["train", "compare", "fidelity", "methods"])
def test_help_has_examples(cli: Cli, command: str) -> None:
    assert f"deltasam {command}" in cli(command, "--help").stdout.partition("Examples")[2]


def test_runs_as_a_module_and_help_is_light() -> None:
    code = (
        "import sys, runpy; sys.argv = ['deltasam', 'compare', '--help']\n"
        "try: runpy.run_module('deltasam', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'transformers', 'datasets', 'torchmetrics', 'altair', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("library", ["typer", "transformers"])
@pytest.mark.slow
def test_missing_extra_names_the_remedy(library: str, common: list[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    code = (
        "import sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] == {library!r}:\n"
        f"            raise ModuleNotFoundError(f'No module named {library}', name={library!r})\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from deltasam.cli import main\n"
        "main()"
    )
    arguments = ["train", *common, "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: the library '{library}' is not installed; pip install 'deltasam[cli]'"


@pytest.mark.slow
def test_a_torchvision_of_another_build_is_named(common: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "site/torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    metadata = tmp_path / "site/torchvision-0.99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    command = [sys.executable, "-m", "deltasam", "train", *common, "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: transformers cannot be imported: the installed torchvision is of")
