"""The page of a table: what it holds, and how it looks in a real browser."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from pathlib import Path

import pytest

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.compare import compare
from deltasam.lab.compare.statistics.conclusion import answer
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.report.page import write_table_page
from deltasam.lab.train.majority_class import OneClass

HOSTILE = [
    "<script>window.hacked=1</script>",
    "</script><img src=x onerror=window.hacked=1>",
    "{{ 7*7 }} ${alert(1)} 😀 مرحبا",
    "unbreakable" * 30,
]


def running(make_rows) -> list[RunGroup]:
    """Four tasks: whole with a run that diverged, half done, not begun, and with a method left out."""
    rows = make_rows(4, 4, effects={"m2": 0.05})
    rows[0].results[5] = dataclasses.replace(rows[0].results[5], metrics={"accuracy": math.nan, "loss": math.inf})
    rows[1] = dataclasses.replace(rows[1], results=rows[1].results[:10])
    rows[2] = dataclasses.replace(rows[2], results=[])
    kept = {spec: label for spec, label in rows[3].labels.items() if label != "m3"}
    rows[3] = dataclasses.replace(rows[3], labels=kept, results=[r for r in rows[3].results if r.method in kept])
    return rows


KINDS = {
    "large": lambda make: make(10, 10, effects={"m3": 0.05, "m7": -0.05}, metrics=("accuracy", "f1")),
    "noise": lambda make: make(3, 4, seeds=3),
    "one task": lambda make: make(1, 3),
    "one seed": lambda make: make(3, 3, seeds=1),
    "running": running,
    "nothing yet": lambda make: [dataclasses.replace(row, results=[]) for row in make(2, 2)],
    "hostile": lambda make: make(HOSTILE, ["erm", *HOSTILE], metrics=("accuracy", HOSTILE[0])),
}
CHARTS = {"large": 12, "noise": 5, "one task": 1, "one seed": 5, "running": 3, "nothing yet": 0, "hostile": 6}


def searched(rows: list[RunGroup]) -> list[RunGroup]:
    return [dataclasses.replace(row, searched=dict.fromkeys(row.labels, "rho in 0.01, 0.02")) for row in rows]


@pytest.fixture(scope="module")
def pages(make_rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for kind, make in KINDS.items():
        facts = {"model": HOSTILE[0], "optimizer": {"lr": 2e-5}}
        title = HOSTILE[0] if kind == "hostile" else "GLUE"
        write_table_page(searched(make(make_rows)), title, facts, folder / f"{kind}.html")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_charts_and_size(pages, kind):
    text = (pages / f"{kind}.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="report-data">(.*?)</script', text, re.DOTALL)[1])
    assert len(data["table"]["charts"]) == len(re.findall('<div class="chart"', text)) == CHARTS[kind]
    assert len(text.encode()) < 5_000_000


def test_the_answer_comes_first_and_the_table_next(make_rows, pages):
    text = (pages / "large.html").read_text(encoding="utf-8")
    first = html.escape(answer(compare(KINDS["large"](make_rows))), quote=False).replace("'", "&#39;")
    assert 0 < text.index(first) < text.index("<table") < text.index("<figure")


def test_text_from_data_cannot_become_markup(pages):
    text = (pages / "hostile.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert text.lower().count("<script") == text.lower().count("</script") == 2


def test_every_run_and_every_choice_is_listed(make_rows, pages):
    text = (pages / "large.html").read_text(encoding="utf-8")
    for row in KINDS["large"](make_rows):
        for run in row.results:
            label = row.labels[run.method]
            entry = f"<bdi>{row.name}</bdi></th><td><bdi>{label}</bdi></td><td>{run.seed}</td>\n    <td>accuracy "
            assert f"{entry}{run.metrics['accuracy']:.4f}, f1 " in text
        for spec in row.labels:
            assert f'{spec}</td><td dir="auto">rho in 0.01, 0.02</td>' in text
    assert re.search(r"optimizer\.lr</th><td[^>]*>2e-05<", text)


def test_no_rows(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        write_table_page([], "GLUE", {}, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [*((kind, 400, "dark") for kind in KINDS), *((kind, 1400, "light") for kind in KINDS), ("large", 900, "light")],
)
def test_page_is_whole(open_page, pages, kind, width, scheme):
    """No error, no request, nothing wider than the window, marks in every chart and a line where none differ."""
    page, troubles = open_page(pages / f"{kind}.html", width, scheme)
    assert troubles == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate(
        """[...document.querySelectorAll('.chart')].map(chart => ({
            key: chart.id, label: chart.getAttribute('aria-label'),
            width: chart.querySelector('svg').getBoundingClientRect().width,
            marks: chart.querySelectorAll('.role-mark path').length,
            zero: chart.querySelectorAll('.role-mark line[stroke-dasharray]').length}))"""
    )
    assert len(drawn) == CHARTS[kind]
    for chart in drawn:
        assert chart["marks"] > 0
        assert chart["label"]
        assert chart["zero"] == (0 if chart["key"] == "chart-table-ranks" else 1)
        assert 250 < chart["width"] <= width


def test_ten_methods_fit_on_a_desktop_and_a_phone_without_scrolling_the_table(open_page, pages):
    for width in (1400, 400):
        page, _ = open_page(pages / "large.html", width, "light")
        region = page.get_by_role("group", name="Table of tasks and methods")
        assert region.evaluate("r => r.scrollWidth <= r.clientWidth")


def test_a_phone_names_the_method_of_every_number_and_says_what_is_better(open_page, pages):
    page, _ = open_page(pages / "large.html", 400, "light")
    cell = page.locator(".overview tbody td.better").first
    assert cell.evaluate("c => getComputedStyle(c, '::before').content") == '"m3"'
    assert cell.locator(".word").inner_text() == "better"
    assert cell.locator(".word").evaluate("w => w.clientWidth") > 20


def test_verdicts_are_read_out_where_only_a_mark_is_seen(open_page, pages):
    page, _ = open_page(pages / "large.html", 1400, "light")
    cell = page.locator(".overview tbody td.worse").first
    assert cell.locator(".mark").inner_text() == "▼"
    assert "worse" in cell.aria_snapshot()


def test_what_is_missing_is_shown(open_page, pages):
    page, _ = open_page(pages / "running.html", 1400, "light")
    rows = [row.inner_text() for row in page.locator(".overview tbody tr").all()]
    assert "1 of 5 diverged" in rows[0]
    assert rows[1].count("of 5 runs") == 4
    assert rows[2].count("waiting") == 4
    assert rows[3].count("not run") == 1
    assert "runs are missing" in page.locator(".details").inner_text()


def test_hostile_text_stays_text(open_page, pages):
    page, _ = open_page(pages / "hostile.html", 1400, "light")
    assert page.locator("main img, main script").count() == 0
    for text in HOSTILE[:3]:
        assert page.locator(".overview tbody bdi", has_text=text).count() == 1
        assert page.locator(".overview thead bdi", has_text=text).count() == 1
        assert page.locator(".filters bdi", has_text=text).count() == 2
        assert text in page.locator("#chart-table-panel-0").get_attribute("aria-label")
    page.locator("#chart-table-panel-0 .role-mark path").nth(1).hover()
    page.wait_for_function("document.querySelector('#vg-tooltip-element.visible')")
    assert page.evaluate("window.hacked") is None


def test_regions_that_scroll_and_folded_parts_are_reached_by_keyboard(open_page, pages):
    page, _ = open_page(pages / "large.html", 900, "light")
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    order = ["Skip to the answer", "Filter", "Table of tasks and methods", "Data of task 0", "Chosen hyper-parameters"]
    assert list(dict.fromkeys(name for name in names if name in order)) == order
    page.locator("summary").last.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1


def test_tasks_and_methods_are_hidden_everywhere(open_page, pages):
    page, _ = open_page(pages / "large.html", 1400, "light")
    average = page.locator(".overview tfoot tr").first.inner_text().split()
    page.locator(".filters summary").click()
    page.locator(".filters").get_by_label("task 3").uncheck()
    page.locator(".filters").get_by_label("m7").uncheck()
    assert page.locator(".overview tbody tr:visible").count() == 9
    assert page.locator(".overview thead th:visible").count() == 10
    assert page.locator(".panels figure:visible").count() == 9
    assert page.locator("#chart-table-ranks").get_by_text("m7").count() == 0
    left = page.locator(".overview tfoot tr").first.inner_text().split()
    assert all(text in average for text in left)  # the average is still that of all tasks
    assert page.locator(".filters [role=status]").inner_text() == "9 of 10 methods, all 5 seeds, 9 of 10 tasks"


def test_accessible(open_page, pages, violations):
    for kind, width, what in (("running", 400, "all"), ("noise", 1400, "structure"), ("hostile", 1400, "structure")):
        page, _ = open_page(pages / f"{kind}.html", width, "dark")
        assert violations(page, what) == []


def test_tasks_are_sorted_by_a_method(open_page, pages):
    page, _ = open_page(pages / "noise.html", 1400, "light")
    page.locator(".overview thead button").nth(1).click()
    values = [float(cell.inner_text()) for cell in page.locator(".overview tbody td:nth-child(2) .mean").all()]
    assert values == sorted(values)
    assert page.locator(".overview tfoot tr").first.inner_text().startswith("average")


def test_print_is_on_white_and_whole(open_page, pages):
    page, _ = open_page(pages / "large.html", 1400, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.set_viewport_size({"width": 720, "height": 1000})
    region = page.get_by_role("group", name="Table of tasks and methods")
    assert region.evaluate("r => r.scrollWidth <= r.clientWidth + 1")


def test_tasks_on_which_runs_do_no_better_than_one_class_are_named(make_rows, tmp_path):
    first, second = make_rows(2, 3)
    known = [dataclasses.replace(run, one_class=OneClass("no", 0.99)) for run in first.results]
    write_table_page([dataclasses.replace(first, results=known), second], "GLUE", {}, tmp_path / "page.html")
    said = html.unescape((tmp_path / "page.html").read_text())
    assert f"<li><bdi>{first.name}</bdi>: {len(known)} of {len(known)} runs do no better than predicting 'no'" in said
    assert f"<bdi>{second.name}</bdi>: " not in said
