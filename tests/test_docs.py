"""Every Python block in the documentation runs, and every command in it exists."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import deltasam
from block_names import namespace
from deltasam.cli.app import app

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
MADE: dict[str, str] = {}
if importlib.util.find_spec("griffe"):  # the pages that are made from the code need the extra `docs`
    import made

    MADE = {f"docs/{path}": text for path, text in made.pages().items()}


def blocks(kind: str, pages: dict[str, str]) -> list[Any]:
    """The fenced blocks of a language, wherever they are indented, with the page that each is on."""
    fence = re.compile(rf"^( *)```{kind}\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
    return [
        pytest.param(textwrap.dedent(found[2]), id=f"{page.removeprefix('docs/')}-{number}")
        for page, text in pages.items()
        for number, found in enumerate(fence.finditer(text))
    ]


@pytest.mark.parametrize("block", blocks("python", {**WRITTEN, **MADE}))
@pytest.mark.filterwarnings("ignore:(DeltaSAM|RWSAM).*rounding")
@pytest.mark.filterwarnings("ignore:PerInstanceSAM.*as it was written")
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "init_process_group" in block:
        run_apart(block)
        return
    names = namespace(block)
    before = [p.detach().clone() for p in names["model"].parameters()]
    known = set(deltasam.Method.registry)
    try:
        exec(compile(block, "documentation", "exec"), names)
        for name in set(deltasam.Method.registry) - known:  # a method that the page defines must work
            method = deltasam.make_method(f"{name}:rho=0.1", names["model"])
            assert float(method.backward(names["losses"]).metrics["radius_ratio"]) == pytest.approx(1, abs=1e-4)
    finally:
        for name in set(deltasam.Method.registry) - known:
            del deltasam.Method.registry[name]
    if "optimizer.step()" in block and "assert" not in block:  # what it shows is that it trains
        after = list(names["model"].parameters())
        assert [p.shape for p in after] != [b.shape for b in before] or not all(map(torch.equal, after, before))


def run_apart(block: str) -> None:
    """Run a block that begins a group of processes as the only process of one, as torchrun would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "block_names"]
    environment = {**os.environ, **group, "PYTHONPATH": path}
    done = subprocess.run(command, input=block, text=True, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def commands(page: str) -> list[list[str]]:
    """What a block of the shell gives to ``deltasam``, one list of words for each time."""
    lines = page.replace("\\\n", "").splitlines()
    found = [re.search(r"(?:^|[/ ])deltasam +([^#>]*)", line) for line in lines if not line.startswith(("pip", "#"))]
    return [shlex.split(match[1]) for match in found if match]


SHELL = [
    pytest.param(words, id=f"{param.id}: {' '.join(words)[:40]}")
    for param in blocks("(?:bash|text)?", {**WRITTEN, **MADE})
    for words in commands(param.values[0])
]


@pytest.mark.parametrize("words", SHELL)
def test_command_exists(words: list[str]) -> None:
    group = typer.main.get_command(app)
    parsed(group, words)


def parsed(command: Any, words: list[str]) -> None:
    """Read the words as the application would, without running anything.

    Raises:
        UsageError: There is no such option, or it lacks its value.
        KeyError: There is no such command.
    """
    context = command.context_class(command, info_name="deltasam")
    _, rest, _ = command.make_parser(context).parse_args(args=list(words))
    if hasattr(command, "commands") and rest:
        parsed(command.commands[rest[0]], rest[1:])
    else:
        assert not rest, f"nothing takes {rest}"


def test_commands_are_found_and_wrong_ones_are_seen() -> None:
    assert len(SHELL) > 30
    group = typer.main.get_command(app)
    for wrong in (["compare", "--no-such-option", "1"], ["compare", "--seeds"], ["methods", "sam", "asam"]):
        with pytest.raises((AssertionError, Exception), match=r"(?i)no such option|requires an argument|nothing takes"):
            parsed(group, wrong)
    with pytest.raises(KeyError):
        parsed(group, ["comare"])


def test_there_are_blocks() -> None:
    assert len(blocks("python", WRITTEN)) >= 60
    questions = re.findall(r"^### .*?(?=^##|\Z)", WRITTEN["docs/faq.md"], re.DOTALL | re.MULTILINE)
    assert len(questions) >= 15
    for question in questions:
        assert "    assert " in question or "\nassert " in question, question.splitlines()[0]


def test_readme_is_short() -> None:
    assert len(WRITTEN["README.md"].splitlines()) < 100


@pytest.mark.parametrize("page", WRITTEN)
def test_local_links(page: str) -> None:
    """Every link works in the repository too, but those to pages that only the site has."""
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", WRITTEN[page]):
        target = (ROOT / page).parent / link
        path = target.resolve().relative_to(ROOT).as_posix()
        assert target.exists() or path in MADE or not MADE, link
