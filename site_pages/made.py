"""Every page that nobody writes by hand."""

from __future__ import annotations

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
        "changelog.md": changelog(),
    }


def changelog() -> str:
    """``CHANGELOG.md``, whose links are from one folder above."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
