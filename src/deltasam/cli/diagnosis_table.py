"""Results of ``deltasam diagnose`` in the terminal: the main numbers, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from deltasam.lab.compare.statistics.formatting import MISSING
from deltasam.lab.compare.text_tables import empty_table
from deltasam.lab.diagnose.number_text import number_text

if TYPE_CHECKING:
    from deltasam.lab.diagnose import Diagnosis


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """One row per number, one column per checkpoint; what is measured of two together has a column of its own."""
    columns = list(dict.fromkeys(name for finding in diagnosis.findings for name in finding.results))
    table = empty_table()
    table.add_column("number", overflow="fold")
    for name in columns:
        table.add_column(Text(name), justify="right", overflow="fold")
    for finding in diagnosis.findings:
        table.add_section()
        for called, cells in finding.numbers.items():
            values = [number_text(cells[name]) if name in cells else MISSING for name in columns]
            table.add_row(Text(called), *map(Text, values))  # Text: no markup
    return table


def readings(diagnosis: Diagnosis) -> Iterator[Text]:
    """What the numbers say, of the first checkpoint for each diagnostic; and what was not measured, and why."""
    for finding in diagnosis.findings:
        title = Text(f"{finding.diagnostic.name}: ", style="bold")
        for name, reading in list(finding.readings.items())[:1]:
            named = f"({name}) " if len(finding.results) > 1 else ""
            yield title + Text(named + reading, style="not bold")
        for name, notes in finding.notes.items():
            yield title + Text(f"note ({name}): {' '.join(notes)}", style="not bold")
        for name, reason in finding.missing.items():
            what = f"not measured ({name})" if finding.applies else "does not apply"
            yield title + Text(f"{what}: {reason}", style="not bold")
