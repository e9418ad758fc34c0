"""Every page that nobody writes by hand."""

from __future__ import annotations

import re
from pathlib import Path

import api_pages
import command_page
import example_pages
import method_cards

ROOT = Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """Their paths below ``docs``, and their Markdown."""
    return {
        **method_cards.pages(),
        **api_pages.pages(),
        **command_page.pages(),
        **example_pages.pages(),
        "how-to/index.md": guides(),
        "changelog.md": changelog(),
    }


def guides() -> str:
    """Every how-to guide by its title, with what it begins with."""
    rows = []
    for path in sorted((ROOT / "docs/how-to").glob("*.md")):
        title, *paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        first = next(p for p in paragraphs if p[0].isalnum() or p[0] in "*`")
        rows.append(f"**[{title.removeprefix('# ').strip()}]({path.name})**: {_unlinked(first)}")
    return "# How-to guides\n\nOne page for each thing one wants to do.\n\n" + "\n\n".join(rows) + "\n"


def _unlinked(text: str) -> str:
    """The first sentence, without links and marks."""
    words = " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "").split())
    return re.split(r"(?<=[.])\s", words)[0].rstrip(":.") + "."


def changelog() -> str:
    """``CHANGELOG.md``, whose links are from one folder above."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
