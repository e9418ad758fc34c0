"""Equations, written as LaTeX between dollar signs, as MathML: browsers show it without any script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves in the page.
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def rendered(page: str) -> str:
    """The HTML of a page with its equations converted."""
    return _EQUATION.sub(_converted, page)


def _converted(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    equation = convert(html.unescape(found[2]).strip(), display=display)
    return f'<div class="equation">{equation}</div>' if display == "block" else equation
