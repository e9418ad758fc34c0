"""Plots as pictures, in the page's light or dark colours."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterable
from importlib import resources
from typing import Any, Literal

from deltasam.lab.diagnose.diagnostic import Plot

Scheme = Literal["light", "dark"]

_INCHES, _DPI = (6.4, 4.4), 140
_LETTERS = 32


def draw(plot: Plot, scheme: Scheme) -> bytes:
    """A plot as a PNG."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: it would choose a window

    style: Any = _style(scheme)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_INCHES, layout="constrained")
        plot.draw(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def legends(names: Iterable[str]) -> list[str]:
    """Names as they stand in a plot: the ends of long ones, numbered where these alone would not tell them apart."""
    whole = list(names)
    short = [name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}" for name in whole]
    if len(set(short)) < len(whole):
        short = [f"{number}: {name}" for number, name in enumerate(short, 1)]
    return [literal(name) for name in short]


def literal(name: str) -> str:
    """A name as text in a plot, where dollar signs would begin a formula."""
    return name.replace("$", r"\$")


def _style(scheme: Scheme) -> dict[str, Any]:
    from cycler import cycler

    colors = _colors(scheme)
    series = [colors[f"series-{i}"] for i in range(1, 10)]
    text = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colors["text"])
    page = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), colors["page"])
    lines = {"axes.edgecolor": colors["muted"], "grid.color": colors["grid"], "legend.edgecolor": colors["grid"]}
    rest = {"axes.prop_cycle": cycler(color=series), "legend.framealpha": 0.8, "font.size": 10}
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    return {**text, **page, **lines, **rest, **spines}


@functools.cache
def _colors(scheme: Scheme) -> dict[str, str]:
    """The page's colours, read where it has them."""
    css = resources.files("deltasam.lab.report").joinpath("styles/base.css").read_text(encoding="utf-8")
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)", 1)
    found: list[tuple[str, str]] = re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark)
    return dict(found)
