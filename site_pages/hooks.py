"""What mkdocs calls while it builds the site: pages made from the code, the navigation, links, equations."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import made
import mathml


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages, and put the pages of a folder where the navigation names the folder."""
    for path, text in made.pages().items():
        files.append(File.generated(config, path, content=text))
    config.nav = [_expanded(entry, files) for entry in config.nav or []]
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Scripts in ``examples/`` are linked as files of the repository; on the site they are pages."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+examples/(\w+)\.py\)", rf"]({up}examples/\1.md)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Equations as MathML."""
    return mathml.rendered(html)


def _expanded(entry: Any, files: Files) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if not isinstance(value, str) or not value.endswith("/"):
        return entry
    inside = [f.src_uri for f in files.documentation_pages() if f.src_uri.startswith(value)]
    return {title: sorted(inside, key=lambda path: (not path.endswith("/index.md"), path))}
