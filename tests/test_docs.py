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
import typer

import deltasam
from block_names import namespace, training
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


# Plugins of the lab would change what later tests train: test_extend.py runs them, in processes of their own.
PLUGINS = ("data_source", "task", "diagnostic", "chart")
HERE = {
    page: text for page, text in {**WRITTEN, **MADE}.items() if page not in [f"docs/extend/{p}.md" for p in PLUGINS]
}


@pytest.mark.parametrize("block", blocks("python", HERE))
@pytest.mark.filterwarnings("ignore:(DeltaSAM|RWSAM).*rounding")
@pytest.mark.filterwarnings("ignore:PerInstanceSAM.*as it was written")
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What registers itself in the lab would change what later tests train and measure.
    if "init_process_group" in block or re.search(
        r"make_task\.register|@row_figure|\((DataSource|Diagnostic\[)", block
    ):
        run_apart(block)
        return
    names = namespace(block)
    known = set(deltasam.Method.registry)
    try:
        with training(block):
            exec(compile(block, "documentation", "exec"), names)
        for name in set(deltasam.Method.registry) - known:  # a method that the page defines must work
            method = deltasam.make_method(f"{name}:rho=0.1", names["model"])
            assert float(method.backward(names["losses"]).metrics["radius_ratio"]) == pytest.approx(1, abs=1e-4)
    finally:
        for name in set(deltasam.Method.registry) - known:
            del deltasam.Method.registry[name]


TUTORIALS = [page for page in WRITTEN if page.startswith("docs/tutorials/")]


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorial_runs_from_top_to_bottom(
    page: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader would run it: each block after those above it, with nothing that the page does not make or name."""
    monkeypatch.chdir(tmp_path)
    trained_by_the_command_line(tiny_model, tmp_path / "out")
    found = blocks(r"(?:python| \{ \.python[^\n]*\})", {page: WRITTEN[page]})
    assert found
    run_in_order([param.values[0] for param in found], WRITTEN[page])


def trained_by_the_command_line(tiny_model: Path, folder: Path) -> None:
    """What ``deltasam train --output out`` leaves, which a page goes on with."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny_model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)


def run_in_order(page: list[str], text: str) -> None:
    """Run the blocks of a page, in which names stay from one to the next.

    Raises:
        AssertionError: One of them shows a training that moves no weight.
        Exception: What one of them raises.
    """
    together = "\n".join(page)
    if "init_process_group" in together:
        run_apart(together)
        return
    names = {} if MAKES_ALL in text else namespace(together)
    for block in page:
        with training(block):
            exec(compile(block, "documentation", "exec"), names)


MAKES_ALL = "need nothing else."  # such a page says that its blocks need no other names


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("method.backward(losses)", NameError, "losses"),
        ("x, y = loader[0]\nfor _ in ():\n    optimizer.step()", AssertionError, "never steps"),
        (
            "optimizer.param_groups[0]['lr'] = 0.0\nmodel(x).sum().backward()\noptimizer.step()",
            AssertionError,
            r"moves no weight: lr \[0.0\]",
        ),
    ],
    ids=["a name is missing", "a loop over nothing", "a schedule at its end"],
)
def test_a_wrong_block_is_seen(wrong: str, error: type[Exception], message: str) -> None:
    page = WRITTEN["docs/tutorials/own_loop.md"]
    right = [param.values[0] for param in blocks("python", {"page": page})][:2]
    with pytest.raises(error, match=message):
        run_in_order([*right, wrong], page)
    with pytest.raises(AssertionError, match="moves no weight"):  # as the page once was
        run_in_order([block.replace("1.0, 0.1", "1.0, 0.0") for block in right], page)


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
