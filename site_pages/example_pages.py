"""The scripts of ``examples/`` as pages: what one sees, and the code."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"


def pages() -> dict[str, str]:
    """A page for each script, and one that lists them."""
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}
    told = {name: ast.get_docstring(ast.parse(code)) or "" for name, code in scripts.items()}
    rows = "\n".join(f"| [{name}]({name}.md) | {_line(text)} |" for name, text in told.items())
    index = (
        "# Examples\n\nEach script compares what it trains with a loop written by hand, or states what is exact, and "
        "fails if that is not so: `python examples/accumulation.py`. The tests run them all.\n\n"
        f"| script | what it is about |\n|---|---|\n{rows}\n"
    )
    return {
        "examples/index.md": index,
        **{f"examples/{name}.md": _page(name, told[name], code) for name, code in scripts.items()},
    }


def _page(name: str, told: str, code: str) -> str:
    return f"# {name}.py\n\n{told.replace('``', '`')}\n\n``` {{ .python .slow }}\n{code.strip()}\n```\n"


def _line(text: str) -> str:
    return text.partition("\n\n")[0].replace("``", "`").replace("\n", " ")
