"""The report in a real browser: whole, without errors, safe, and usable by mouse and keyboard."""

from __future__ import annotations

import pytest

from deltasam.lab.data.setting import Setting
from deltasam.lab.report.page import write_report

HOSTILE = [
    "<script>window.hacked=1</script>",
    "</script><img src=x onerror=window.hacked=1>",
    "😀 مرحبا بالعالم",
    "unbreakable" * 40,
]
METHODS = ["erm", "sam:rho=0.05", "delta_sam:rho=0.05,tau=1", "asam:rho=5"]
KINDS = {
    "usual": (METHODS, 3, {"noise": 0.2}),
    "hostile": (["erm", "delta_sam", *HOSTILE], 2, {"texts": HOSTILE, "labels": HOSTILE}),
    "one run": (["erm"], 1, {}),
    "one seed": (["erm", "sam"], 1, {}),
    "diverged": (["erm", "sam", "asam"], 2, {"diverged": [("sam", 0), ("asam", 0), ("asam", 1)]}),
    "settings": (["erm", "sam", "delta_sam"], 3, {"settings": [Setting(100), Setting(100, 0.2), Setting(500)]}),
    "ten methods": (["erm", *(f"method_{i}:rho=0.05,alpha=0.1" for i in range(9))], 5, {"regression": True}),
}


@pytest.fixture(scope="module")
def reports(make_results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for kind, (methods, seeds, options) in KINDS.items():
        write_report(make_results(methods, seeds, **options), {"note": HOSTILE}, folder / f"{kind}.html")
    return folder


@pytest.fixture
def opened(open_page, reports):
    return lambda kind, width, scheme: open_page(reports / f"{kind}.html", width, scheme)


@pytest.fixture
def usual(opened):
    """A comparison of four methods with three seeds."""
    return opened("usual", 1400, "light")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_whole_on_a_phone(opened, kind):
    assert_whole(*opened(kind, 400, "dark"), 400)


@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_page_is_whole_on_a_desktop(opened, kind):
    assert_whole(*opened(kind, 1400, "light"), 1400)


def assert_whole(page, troubles: list[str], width: int) -> None:
    """No error, no request, nothing wider than the window, marks in every chart and words for it."""
    assert troubles == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate(
        """[...document.querySelectorAll('.chart svg')].map(svg => ({
            marks: svg.querySelectorAll('.role-mark path, .role-mark line, .role-mark text').length,
            label: svg.closest('.chart').getAttribute('aria-label'), width: svg.getBoundingClientRect().width}))"""
    )
    assert len(drawn) >= 5
    for chart in drawn:
        assert chart["marks"] > 0
        assert "erm: " in chart["label"] or "sam" in chart["label"] or "method_1" in chart["label"]
        assert 300 < chart["width"] <= width


def test_accessible_on_a_phone_and_a_desktop_in_light_and_dark(opened, violations):
    page, _ = opened("usual", 400, "dark")
    page.locator(".filters summary").click()
    page.locator("figure.differences .data summary").click()
    page.get_by_text("Every run").click()
    assert violations(page) == []
    page.emulate_media(color_scheme="light")
    assert violations(page, "contrast") == []
    page.set_viewport_size({"width": 1400, "height": 900})
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page, "contrast") == []


@pytest.mark.parametrize("kind", ["hostile", "settings", "diverged"])
def test_accessible_whatever_the_runs(opened, violations, kind):
    page, _ = opened(kind, 1400, "light")
    assert violations(page, "structure") == []


def shown(page, selector: str) -> list[str]:
    """The text of the elements that can be seen, in order."""
    return [e.inner_text() for e in page.locator(selector).all() if e.is_visible()]


def marks(page, chart: str) -> list[str]:
    """What a screen reader hears of each mark of a chart that has data."""
    return page.locator(f"#chart-part-0-{chart} .role-mark path[aria-label]").evaluate_all(
        "all => all.map(mark => mark.getAttribute('aria-label'))"
    )


def test_a_method_is_hidden_in_charts_and_tables_alike(usual):
    before, dots = shown(usual, ".methods tbody tr"), marks(usual, "differences")
    answer = usual.locator(".answer").inner_text()
    usual.locator(".filters summary").click()
    usual.locator(".filters").get_by_label("asam:rho=5").uncheck()
    assert shown(usual, ".methods tbody tr") == before[:3]  # the others' numbers stay, to the letter
    assert len(shown(usual, ".card")) == 3
    assert not any("asam" in text for text in shown(usual, "main tbody tr, .legend li, .inspection"))
    for chart in ("differences", "costs", "evaluations-metric", "detection-loss"):
        usual.wait_for_function(f"!document.querySelector('#chart-part-0-{chart} svg').innerHTML.includes('asam')")
    assert marks(usual, "differences") == [dot for dot in dots if "asam" not in dot]
    assert usual.locator(".answer").inner_text() == answer
    assert usual.locator(".filters [role=status]").inner_text() == "3 of 4 methods, all 3 seeds"
    usual.get_by_role("button", name="Show everything").click()
    usual.wait_for_function(
        "document.querySelector('.filters [role=status]').textContent === 'all 4 methods, all 3 seeds'"
    )
    assert shown(usual, ".methods tbody tr") == before
    assert marks(usual, "differences") == dots


def test_hiding_a_seed_recomputes_nothing(usual):
    tables, dots = shown(usual, ".methods tbody tr, .card"), marks(usual, "differences")
    curves = usual.locator("#chart-part-0-evaluations-loss .role-mark path").count()
    bars = marks(usual, "costs")
    usual.locator(".filters summary").focus()
    usual.keyboard.press("Enter")
    usual.locator(".filters").get_by_label("1", exact=True).focus()
    usual.keyboard.press("Space")
    assert usual.locator(".filters [role=status]").inner_text() == "all 4 methods, 2 of 3 seeds"
    assert "they do not recompute" in usual.locator(".filters").inner_text()
    assert shown(usual, ".methods tbody tr, .card") == tables
    usual.get_by_text("Every run").click()
    assert len(shown(usual, "details[open] tr[data-seed='0']")) == 4
    assert shown(usual, "details[open] tr[data-seed='1']") == []
    left = marks(usual, "differences")
    assert set(left) < set(dots)
    assert len(left) == len(dots) - 3  # a ring of each of three methods; the means with their intervals stay
    assert [bar for bar in marks(usual, "costs") if "seed" not in bar] == [bar for bar in bars if "seed" not in bar]
    assert usual.locator("#chart-part-0-evaluations-loss .role-mark path").count() == curves - 4


def column(page, table: str, number: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr > :nth-child({number})").all()
    return [cell.inner_text().split()[0] for cell in cells]


def test_tables_are_sorted_by_mouse_and_keyboard(usual):
    head = usual.locator(".methods thead th").nth(5)
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    ascending = column(usual, ".methods", 6)
    assert ascending == sorted(ascending, key=lambda text: float(text.rstrip("x")))
    usual.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert column(usual, ".methods", 6) == ascending[::-1]
    assert usual.locator(".methods thead [aria-sort$=ending]").count() == 1


def test_differences_are_sorted_by_their_size_and_missing_ones_stay_last(usual):
    for _ in range(2):
        usual.locator(".methods thead button").nth(2).click()
    signed = [float(text.replace("baseline", "0")) for text in column(usual, ".methods", 3)]
    assert signed == sorted(signed, reverse=True)
    for _ in range(2):
        usual.locator(".detection thead button").nth(1).click()
        assert column(usual, ".detection", 2)[1:] == ["–"] * 3  # only one method has weights


def test_the_data_behind_every_chart(usual):
    for figure in usual.locator("figure").all():
        figure.locator(".data summary").click()
    found = usual.evaluate(
        """[...document.querySelectorAll('figure')].map(figure => ({
            rows: figure.querySelectorAll('.data tbody tr').length, key: figure.className,
            heads: figure.querySelectorAll('.data thead [aria-sort]').length}))"""
    )
    counts = {chart["key"]: chart["rows"] for chart in found}
    assert counts["differences"] == 3 + 9  # means, then seeds
    assert counts["costs"] == 12 + 4
    assert counts["evaluations-metric"] == 8 * (12 + 4)
    assert counts["steps-loss"] == 60 * (12 + 4)
    assert all(chart["heads"] >= 3 for chart in found)
    interval = usual.locator(".methods td:nth-child(3)").nth(1).inner_text().split()[0]
    table = usual.locator("figure.differences .data table").inner_text()
    assert f"{float(interval):.3f}"[:5] in table  # the same mean as in the table of methods


def test_rankings_are_switched_by_keyboard(usual):
    captions = ".inspection .examples caption"
    assert set(shown(usual, captions)) == {"Largest loss", "Smallest loss"}
    usual.get_by_role("radio", name="loss").focus()
    usual.keyboard.press("ArrowUp")
    assert set(shown(usual, captions)) == {"Largest norm", "Smallest norm"}


def test_without_a_script_everything_is_seen_and_nothing_is_there_to_press(browser, reports):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((reports / "usual.html").as_uri())
    assert set(shown(page, ".inspection .examples caption")) == {
        f"{end} {by}" for end in ("Largest", "Smallest") for by in ("weight", "norm", "loss")
    }
    assert shown(page, ".filters, fieldset, .data, main button") == []
    assert len(shown(page, ".methods tbody tr")) == 4
    context.close()


def test_the_keyboard_gets_everywhere_and_is_seen(usual):
    usual.keyboard.press("Tab")
    assert usual.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert usual.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    usual.keyboard.press("Enter")
    assert usual.evaluate("document.activeElement.id") == "content"
    usual.keyboard.press("Tab")
    assert usual.evaluate("document.activeElement.textContent") == "Filter"
    for _ in range(12):
        outline = "getComputedStyle(document.activeElement.closest('.chip') || document.activeElement).outlineStyle"
        assert usual.evaluate(outline) == "solid"
        usual.keyboard.press("Tab")


def test_paper_shows_everything_on_white(usual):
    usual.locator(".filters summary").click()
    usual.locator(".filters").get_by_label("asam:rho=5").uncheck()
    rows = len(shown(usual, "main tbody tr"))
    usual.emulate_media(media="print", color_scheme="dark")
    usual.wait_for_function("document.querySelectorAll('main details:not(.data):not([open])').length === 0")
    usual.wait_for_function("document.querySelector('#chart-part-0-costs svg').innerHTML.includes('asam')")
    assert shown(usual, ".filters, fieldset, .data, .skip") == []
    hidden = "[...document.querySelectorAll('main tbody tr')].filter(row => !row.offsetParent).length"
    assert usual.evaluate(hidden) == 0
    assert usual.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    usual.set_viewport_size({"width": 718, "height": 1000})  # A4
    charts = "[...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().right)"
    assert max(usual.evaluate(charts)) <= 718
    assert usual.evaluate("document.documentElement.scrollWidth") <= 718
    usual.set_viewport_size({"width": 1400, "height": 900})
    usual.emulate_media(media="screen")
    usual.wait_for_function("document.querySelectorAll('main > details[open]').length === 0")
    assert len(shown(usual, "main tbody tr")) == rows


def test_hostile_text_stays_text(opened):
    page, troubles = opened("hostile", 1400, "light")
    for summary in page.locator("figure .data summary, .filters summary").all():
        summary.click()
    for head in page.locator(".methods thead button").all():
        head.click()
    assert page.locator("main img, main script").count() == 0
    chart = page.locator("#chart-part-0-costs")
    for text in HOSTILE[:3]:
        assert page.locator("td.text", has_text=text).count() > 0
        assert page.locator("td .label", has_text=text).count() > 0
        assert page.locator(".methods tbody bdi", has_text=text).count() == 1
        assert page.locator(".filters bdi", has_text=text).count() == 1
        assert page.locator("figure.costs .data td", has_text=text).count() == 3
        assert text in chart.get_attribute("aria-label")
        page.locator(".filters label", has_text=text).locator("input").uncheck()
        assert page.locator(".methods tbody tr", has_text=text).is_hidden()
    assert page.evaluate("window.hacked") is None
    assert troubles == []


def test_hostile_text_in_a_tooltip_stays_text(opened):
    page, _ = opened("hostile", 1400, "light")
    page.locator("#chart-part-0-costs .mark-rect path").nth(2).hover()
    page.wait_for_function("document.querySelector('#vg-tooltip-element.visible')")
    assert HOSTILE[0] in page.locator("#vg-tooltip-element").inner_text()
    assert page.evaluate("window.hacked") is None


def test_charts_follow_the_colour_scheme(usual):
    color = "getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill"
    light = usual.evaluate(color)
    usual.emulate_media(color_scheme="dark")
    assert usual.evaluate(color) != light
    assert usual.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    usual.emulate_media(color_scheme="dark", media="print")
    assert usual.evaluate(color) == light


def test_charts_fit_a_window_that_shrinks(usual):
    usual.set_viewport_size({"width": 400, "height": 900})
    usual.wait_for_function("[...document.querySelectorAll('.chart svg')].every(s => s.clientWidth <= 400)")
    assert usual.evaluate("document.documentElement.scrollWidth") <= 400
