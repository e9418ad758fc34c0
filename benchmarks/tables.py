"""Write the tables of ``benchmarks/results`` into ``docs/experiments.md``, each between its two marks.

``python benchmarks/tables.py`` after a new file was put there; a test holds the page to the files.
"""

from __future__ import annotations

import re
from pathlib import Path

from deltasam.experiment.overview import conclusion, markdown_table, survey
from deltasam.reproduce import read_record
from deltasam.spec import short_spec

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/experiments.md"
MARKS = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)


def table(name: str) -> str:
    """What the file of a table shows: the conclusion, the numbers, and the hyper-parameters that were chosen."""
    record = read_record(RESULTS / f"{name}.jsonl")
    overview = survey(record.rows)
    rows = {row.name: ", ".join(f"`{short_spec(spec)}`" for spec in row.labels) for row in record.rows}
    together = {specs: [row for row, found in rows.items() if found == specs] for specs in rows.values()}
    chosen = "\n".join(f"- {'; '.join(names)}: {specs}" for specs, names in together.items())
    return f"{conclusion(overview)}\n\n{markdown_table(overview)}\nRun with\n\n{chosen}\n"


def page() -> str:
    """The page with the tables as they are now."""
    return MARKS.sub(lambda found: f"{found[1]}{table(found['name'])}{found[3]}", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
