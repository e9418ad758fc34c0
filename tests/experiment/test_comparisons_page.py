"""Several comparisons on one page: judged together, and shown in a real browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from deltasam.lab.compare.statistics.compare import compare_runs, compare_together
from deltasam.lab.compare.statistics.paired import holm
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.report.page import write_comparisons

METHODS = ["erm", "sam", "asam:rho=5"]
HOSTILE = "</a><img src=x onerror=window.hacked=1>{{ 7*7 }}"


def group(title: str, results: list, seeds: int = 3) -> RunGroup:
    methods = dict.fromkeys(run.method for run in results)
    return RunGroup.by_method(title, results, {m: tuple(range(seeds)) for m in methods}, {"data": title})


@pytest.fixture(scope="module")
def three(make_results) -> list[RunGroup]:
    """A whole comparison, one of other methods that lacks runs, and one that has no erm."""
    whole, other = make_results(METHODS, 3), make_results(["erm", "delta_sam"], 2)
    without = make_results(["sam", "asam:rho=5"], 3)
    return [group("runs/one", whole), group(HOSTILE, other), group("runs/three", without)]


def test_every_difference_is_corrected_for_all_of_the_page(three):
    table = compare_together(three)
    assert table.comparisons == 4  # sam and asam to erm; delta_sam, which is not finished; asam to sam
    alone = [compare_runs(g.results) for g in three]
    raw = [m.difference.p_value for c in (alone[0], alone[2]) for m in c.others]
    expected = holm([*raw, 1.0])[:3]
    found = [m.difference.holm for row in (table.rows[0], table.rows[2]) for m in row.others]
    assert found == pytest.approx(expected)
    assert all(p > m.difference.holm for p, m in zip(found, alone[0].others, strict=False))
    everywhere = [cell.difference.holm for _, cell in table.cells if cell.difference]
    assert [p for p in everywhere if p is not None] == found  # the table and the parts say the same


def test_what_is_not_finished_is_not_judged(three):
    table = compare_together(three)
    (delta,) = table.rows[1].others
    assert delta.difference.p_value is not None
    assert (delta.judgement, delta.difference.holm, delta.difference.seeds_needed) == ("unknown", None, None)
    verdicts = {cell.method: cell.verdict for cell in table.rows[1].cells}
    assert verdicts == {"erm": "unfinished", "sam": "absent", "asam:rho=5": "absent", "delta_sam": "unfinished"}


def test_one_whole_comparison_is_judged_as_if_alone(three):
    (together,) = compare_together(three[:1]).rows
    assert dataclasses.replace(together, name="") == compare_runs(three[0].results)


def test_each_comparison_has_its_own_baseline(three):
    table = compare_together(three)
    assert [row.baseline for row in table.rows] == ["erm", "erm", "sam"]
    assert table.baseline == "the baseline"
    assert [cell.method for cell in table.rows[2].cells if cell.is_baseline] == ["sam"]


def test_one_comparison_has_no_table_of_comparisons(three, tmp_path: Path):
    half = dataclasses.replace(three[0], results=three[0].results[:-1])
    write_comparisons([half], [], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'class="overview' not in text
    assert "Not finished: 1 of 9 runs are missing (asam:rho=5 with seed 2)." in text
    assert "Not on this page" not in text


def test_where_the_baseline_alone_is_finished_the_others_are_still_to_come(three, tmp_path: Path):
    begun = dataclasses.replace(three[0], results=[run for run in three[0].results if run.method == "erm"])
    write_comparisons([begun], [], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Only erm has finished runs so far: there is nothing to compare it with yet." in text
    assert "Only erm was run" not in text
    write_comparisons([group("runs/one", begun.results)], [], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Only erm was run: there is nothing to compare it with." in text
    assert "corrected" not in text


def test_one_difference_needs_no_correction(three, tmp_path: Path):
    pair = group("runs/one", [run for run in three[0].results if run.method in ("erm", "sam")])
    write_comparisons([pair], [], tmp_path / "page.html")
    assert "1 differences" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def path(three, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "all.html"
    write_comparisons(three, [f"{HOSTILE}: a file, no output folder; left out"], path)
    return path


def test_the_answer_and_the_table_come_first(path):
    text = path.read_text(encoding="utf-8")
    assert 0 < text.index('class="answer"') < text.index('class="overview') < text.index("<article")
    assert "<img src=x" not in text
    assert len(text.encode()) < 5_000_000
    parts = re.findall(r'<article id="(part-\d)"', text)
    assert re.findall(r'href="#(part-\d)"', text) == parts
    assert "corrected for all 4 differences on this page" in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(("width", "scheme", "what"), [(400, "dark", "structure"), (1400, "light", "all")])
def test_page_is_whole_and_accessible(open_page, violations, path, width, scheme, what):
    page, troubles = open_page(path, width, scheme)
    assert violations(page, what) == []
    assert troubles == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.hacked") is None
    page.locator(".overview a", has_text="runs/three").click()
    assert page.locator("article").nth(2).evaluate("e => e.getBoundingClientRect().top") < 900


def test_a_comparison_is_hidden_with_its_part(open_page, path):
    page, _ = open_page(path, 1400, "light")
    page.locator(".filters summary").click()
    page.locator(".filters").get_by_label(HOSTILE).uncheck()
    assert page.locator("article:visible").count() == page.locator(".overview tbody tr:visible").count() == 2
    assert page.locator(".filters [role=status]").inner_text().endswith("2 of 3 comparisons")
