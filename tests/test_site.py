"""The documentation site: it builds without a warning, holds together, loads nothing from elsewhere, and tells all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

import deltasam
import deltasam.diagnostics.examples
from deltasam import diagnostics

pytest.importorskip("mkdocs", reason="the site needs mkdocs: pip install 'deltasam[docs]'")
pytest.importorskip("mkdocstrings", reason="the site needs mkdocstrings: pip install 'deltasam[docs]'")
pytest.importorskip("latex2mathml", reason="the site needs latex2mathml: pip install 'deltasam[docs]'")

import command_page
import made
import mathml
import method_cards

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("site")


class Page(HTMLParser):
    """The links, anchors and things loaded of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and "href" in given and given.get("rel") != "canonical":
            self.loaded.append(given["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(Path(deltasam.__file__).parents[1])}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not [line for line in said.splitlines() if not line.startswith("INFO ")], said
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Page]:
    found = {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    return {name: page for name, page in found.items() if name != "404.html"}


def test_every_page_is_built_and_reached_from_the_navigation(pages: dict[str, Page]) -> None:
    sources = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")} | set(made.pages())
    assert {source.replace(".md", ".html") for source in sources} == set(pages)
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "omitted_files: warn" in text  # with --strict: a page that the navigation lacks ends the build


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    internal = 0
    for name, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(name), unquote(target))) if target else name
            assert (site / path).exists(), f"{name}: {link}"
            if anchor and path in pages:
                assert unquote(anchor) in pages[path].anchors, f"{name}: {link}"
            internal += 1
    assert internal > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for thing in page.loaded:
            assert not re.match(r"(https?:)?//", thing), f"{name}: {thing}"
            assert (site / os.path.dirname(name) / thing.partition("?")[0]).exists(), f"{name}: {thing}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_public_name_is_documented(pages: dict[str, Page]) -> None:
    for module, at in ((deltasam, "deltasam"), (diagnostics, "diagnostics"), (diagnostics.examples, "diagnostics")):
        page = pages[f"reference/{at}.html"]
        for name in module.__all__:
            if name != "weight_space":  # a module, on the page for methods of one's own
                assert f"{module.__name__}.{name}" in page.anchors
    own = pages["reference/own_methods.html"].anchors
    assert {"deltasam.core.vectors.norm", "deltasam.core.closure.loss_of", "deltasam.core.passes.Passes.at"} <= own
    stacks = pages["reference/integrations.html"].anchors
    assert {"deltasam.integrations.hf.Trainer", "deltasam.integrations.lightning.MethodCallback"} <= stacks


def test_search_knows_the_pages(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"faq.html", "methods/delta_sam.html", "theory/per_example.html", "reference/command_line.html"} <= found
    assert (site / "search/search_index.js").exists()  # what a page that was opened from disk reads


@pytest.mark.parametrize("name", deltasam.method_names())
def test_every_method_has_every_part_of_its_card(name: str) -> None:
    card = method_cards.card(deltasam.Method.registry[name])
    assert len(card.source) > 20
    assert re.search(r"\d{4}", card.source)  # a year
    assert re.match("(one|two|as many|with|three) |two forwards", card.cost)
    assert card.equation.startswith("``")
    assert {p.name for p in card.hyperparameters} == set(deltasam.hyperparameters(deltasam.Method.registry[name]))


@pytest.mark.parametrize("begin", [*(f"    {part}: " for part in method_cards.PARTS), "        rho: "])
def test_a_part_that_is_missing_is_told(begin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    docstring = deltasam.SAM.__doc__
    assert docstring
    assert begin in docstring
    monkeypatch.setattr(deltasam.SAM, "__doc__", docstring.replace(begin, begin.rstrip(": ") + "less: ", 1))
    with pytest.raises(ValueError, match=r"the docstring of sam does not tell"):
        method_cards.card(deltasam.SAM)


def test_the_command_line_is_told_whole() -> None:
    import typer

    from deltasam.cli.app import app

    (page,) = command_page.pages().values()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = page.partition(f"\n## deltasam {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            shown = parameter.name.upper() if parameter.param_type_name == "argument" else parameter.opts[0]
            assert f"`{shown}`" in section
            assert " ".join(parameter.help.split()).replace("|", "\\|") in section


def test_equations_become_mathml() -> None:
    page = mathml.rendered(r'<p><span class="arithmatex">\(a &lt; b\)</span></p>')
    assert "<math" in page
    assert "&lt;" in page or "&#x0003C;" in page
    assert "arithmatex" not in page


def test_no_equation_is_left_over(site: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert sum(text.count("<math") for text in texts) > 20
    assert not any("arithmatex" in text for text in texts)


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
def test_it_works_when_opened_from_disk(site: Path, browser: Any, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(20_000)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda r: troubles.append(r.url) if r.url.startswith("http") else None)
    for name in ("choose.html", "methods/index.html", "theory/per_example.html", "faq.html"):
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    if width > 1000:
        page.keyboard.press("/")
        page.keyboard.type("gradscaler", delay=30)
        found = page.locator(".md-search-result__link").first  # the search worker answered
        assert "faq.html" in str(found.get_attribute("href"))
    page.close()
    assert troubles == []
