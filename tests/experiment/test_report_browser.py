"""The report in a real browser."""

from __future__ import annotations

import pytest

from deltasam.experiment.report import write_report
from deltasam.experiment.setting import Setting

HOSTILE = [
    "<script>window.hacked=1</script>",
    "</script><img src=x onerror=window.hacked=1>",
    "😀 مرحبا بالعالم",
    "unbreakable" * 40,
]
KINDS = {
    "usual": (["erm", "sam:rho=0.05", "delta_sam:rho=0.05,tau=1", "asam:rho=5"], 3, {}),
    "hostile": (["erm", "delta_sam", *HOSTILE], 2, {"texts": HOSTILE, "labels": HOSTILE}),
    "one run": (["erm"], 1, {}),
    "one seed": (["erm", "sam"], 1, {}),
    "diverged": (["erm", "sam", "asam"], 2, {"diverged": [("sam", 0), ("asam", 0), ("asam", 1)]}),
    "settings": (
        ["erm", "sam", "delta_sam"],
        3,
        {"settings": [Setting(n, x) for n in (100, 500) for x in (0, 0.2, 0.4)]},
    ),
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


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_whole_on_a_phone(opened, kind):
    assert_whole(*opened(kind, 400, "dark"), 400)


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [("usual", 400, "light"), ("usual", 1400, "light"), ("usual", 1400, "dark"), ("hostile", 1400, "light")],
)
def test_page_is_whole_otherwise(opened, kind, width, scheme):
    assert_whole(*opened(kind, width, scheme), width)


def assert_whole(page, troubles: list[str], width: int) -> None:
    """No error, no request, nothing wider than the window, and marks in every chart."""
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
        assert chart["label"]
        assert 300 < chart["width"] <= width


def test_hostile_text_stays_text(opened):
    page, _ = opened("hostile", 1400, "light")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0
    for text in HOSTILE[:3]:
        assert page.locator("td.text", has_text=text).count() > 0
        assert page.locator("td .label", has_text=text).count() > 0
        assert page.locator("tbody bdi", has_text=text).count() > 0


def test_hostile_text_in_a_tooltip_stays_text(opened):
    page, _ = opened("hostile", 1400, "light")
    page.locator("#chart-part-0-costs .mark-rect path").nth(2).hover()
    page.wait_for_function("document.querySelector('#vg-tooltip-element.visible')")
    assert HOSTILE[0] in page.locator("#vg-tooltip-element").inner_text()
    assert page.evaluate("window.hacked") is None


def test_charts_follow_the_colour_scheme_and_print_on_white(opened):
    page, _ = opened("usual", 1400, "light")
    color = "getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(color) != light
    assert page.evaluate(ground) != "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(color) == light
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_charts_fit_a_window_that_shrinks(opened):
    page, _ = opened("usual", 1400, "light")
    page.set_viewport_size({"width": 400, "height": 900})
    page.wait_for_function("[...document.querySelectorAll('.chart svg')].every(s => s.clientWidth <= 400)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
