"""The table in the terminal and in Markdown."""

from __future__ import annotations

import dataclasses
import re

import pytest
from rich.console import Console

from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.compare import compare
from deltasam.lab.compare.text_tables import TerminalTable, markdown_table

TASKS = ["CoLA", "MRPC, 30 % label noise", "a|b\n[red]`x`</td>"]
METHODS = ["erm", "sam", "per_instance_sam", "a_name_that_is_longer_than_any_column", "[bold]x|y", "m5", "m6"]


def printed(table, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(TerminalTable(table))
    return console.export_text()


def numbers(table) -> list[str]:
    """Everything that must stand in the table whole."""
    cells = [rounding.mean_margin(cell.metric) for _, cell in table.cells]
    averages = [rounding.mean_margin(column.average) for column in table.columns]
    costs = [rounding.ratio(column.cost) for column in table.columns]
    return [*cells, *averages, *costs, *(f"{rank:.1f}" for rank in table.ranking.mean.values())]


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize(("tasks", "methods"), [(TASKS, METHODS), (10, 10), (2, 2)])
def test_every_number_is_whole_at_any_width(make_rows, tasks, methods, width):
    table = compare(make_rows(tasks, methods, effects={"sam": 0.05}))
    text = printed(table, width)
    assert max(map(len, text.splitlines())) <= width
    assert [number for number in numbers(table) if number not in text] == []


def test_the_baseline_stands_in_every_block(make_rows):
    table = compare(make_rows(2, 10))
    text = printed(table, 80)
    headers = [line.split()[1:] for line in text.splitlines() if line.startswith("task ") and "erm" in line]
    assert len(headers) > 2
    assert {header[0] for header in headers} == {"erm"}
    assert [m for header in headers for m in header[1:]] == [f"m{i}" for i in range(1, 10)]


def test_one_block_where_there_is_room(make_rows):
    assert printed(compare(make_rows(10, 10)), 200).count("average of 10 tasks") == 1


def test_marks_stand_next_to_what_differs(make_rows):
    table = compare(make_rows(["CoLA"], ["erm", "sam", "asam", "m3"], effects={"sam": 0.2, "asam": -0.2}))
    (line,) = [line for line in printed(table, 120).splitlines() if line.startswith("CoLA")]
    assert re.fullmatch(r"CoLA +\d\S+ ± \S+ +▲ \d\S+ ± \S+ +▼ \d\S+ ± \S+ +\d\S+ ± \S+ *", line)


def test_what_is_not_whole_is_named(make_rows):
    rows = make_rows(2, 3)
    missing = [r for r in rows[0].results if (r.method, r.seed) != ("m1:rho=0.01", 4)]
    rows[0] = dataclasses.replace(rows[0], results=missing)
    rows[1] = dataclasses.replace(rows[1], results=[])
    for text in (printed(compare(rows), 120), markdown_table(compare(rows))):
        assert "(4 of 5 runs)" in text
        assert text.count("waiting") == 3
        assert "average of the 0" in text


def test_markdown_is_one_table_with_all_columns(make_rows):
    table = compare(make_rows(TASKS, METHODS, effects={"sam": 0.2}, metrics=("accuracy", "f1")))
    text = markdown_table(table)
    lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 2 + len(TASKS) + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(METHODS) + 2}
    assert [number for number in numbers(table) if number not in text] == []
    assert "| MRPC, 30 % label noise (accuracy, f1) |" in text
    assert re.search(r"\| ▲ \d\.\d+ ± \d\.\d+; \d\.\d+ \|", text)


def test_markdown_takes_text_for_text(make_rows):
    text = markdown_table(compare(make_rows(TASKS, METHODS)))
    assert r"a\|b \[red\]\`x\`&lt;/td&gt; (accuracy)" in text
    assert r"per\_instance\_sam" in text
