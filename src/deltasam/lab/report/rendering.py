"""Write a page: one HTML file that needs nothing else, with its charts and the data they draw."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from deltasam.core.files import write_atomically
from deltasam.lab.compare import text_tables
from deltasam.lab.compare.statistics import formatting
from deltasam.lab.report.figures import Figure
from deltasam.lab.train.jsonable import flat

_PACKAGE = "deltasam.lab.report"


def write_page(
    template: str,
    path: Path,
    *,
    figures: Mapping[str, Sequence[Figure]],
    config: Mapping[str, Any],
    **values: object,
) -> None:
    """Write a template of this package, filled in.

    Args:
        template: Its name in ``templates``; extends ``base.html.jinja``.
        path: The HTML file.
        figures: Charts by part of the page; drawn into the element ``chart-PART-KEY``.
        config: Options to list; values may be nested mappings.
        values: What else the template shows.

    Raises:
        UserError: The file cannot be written.
    """
    data = {part: _data(of_part) for part, of_part in figures.items()}
    page = _environment().get_template(template).render(data=data, config=dict(flat(config)), script=_script, **values)
    # Data may hold halves of surrogate pairs, which no UTF-8 file can.
    write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))


def _data(figures: Sequence[Figure]) -> dict[str, Any]:
    """The charts of a part of a page, and the named rows that they draw and their tables show."""
    charts = {
        f.key: {"spec": {**f.spec, "description": f.alt}, "rows": f.data, "columns": dict(f.columns)} for f in figures
    }
    return {"charts": charts, "datasets": {f.data: f.rows for f in figures}}


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(_PACKAGE, folder) for folder in ("templates", "styles")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = ("format_number", "brief", "mean_margin", "signed_interval", "p_value", "ratio", "gibibytes")
    environment.filters |= {name: getattr(formatting, name) for name in numbers} | {"breakable": _breakable}
    environment.globals |= {"WORDS": formatting.WORDS, "MARKS": formatting.MARKS, "text": text_tables}
    # tojson escapes what could end a script element; browsers refuse NaN, so writing it is an error.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


@functools.cache
def _script() -> str:
    """Vega and the page's own scripts, in the order of their names, as one module.

    Bundling takes a second, so it is done once per process.
    """
    files = sorted(resources.files(_PACKAGE).joinpath("scripts").iterdir(), key=lambda file: file.name)
    bundle: str = vl_convert.javascript_bundle("\n".join(file.read_text(encoding="utf-8") for file in files))
    return bundle


def _breakable(name: str) -> Markup:
    """A name that may be broken after its underscores, where a column is narrow."""
    return Markup("_<wbr>").join(name.split("_"))
