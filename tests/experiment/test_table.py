from __future__ import annotations

import math

import pytest
from rich.console import Console

from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.paired import Estimate
from deltasam.lab.compare.text_tables import row_table

METHODS = ["erm", "sam:rho=0.05", "delta_sam:rho=0.05,tau=1", "asam:rho=5"]


def printed(results, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(row_table(compare_runs(results)))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_every_number_is_whole_at_any_width(make_results, width, seeds):
    results = make_results(METHODS, seeds)
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    for m in compare_runs(results).begun:
        assert rounding.mean_margin(m.metric) in text
        assert rounding.ratio(m.cost) in text
        if m.difference:
            assert all(part in text for part in rounding.signed_interval(m.difference.estimate))


def test_columns_say_what_they_hold(make_results):
    header = printed(make_results(METHODS, 3), 120).splitlines()[0].split()
    assert header == ["method", "accuracy", "vs", "baseline", "NLL", "ECE", "cost", "GiB"]


def test_regression_has_a_squared_error_and_no_calibration(make_results):
    text = printed(make_results(METHODS, 3, regression=True), 120)
    assert "MSE" in text
    assert rounding.MISSING in text


def test_a_diverged_run_is_named(make_results):
    assert "diverged" in printed(make_results(METHODS, 3, diverged=[(METHODS[1], 0)]), 80)


def test_what_cannot_be_judged_is_called_as_on_the_page(make_results):
    text = printed(make_results(METHODS, 1), 120)
    assert "not judged" in text
    assert "unknown" not in text


def test_brackets_in_a_spec_are_text(make_run):
    text = printed([make_run("erm", 0, 0.8), make_run("sam[red]:a=[/]", 0, 0.9)], 120)
    assert "sam[red]:a=[/]" in text


@pytest.mark.parametrize(
    ("mean", "margin", "text"),
    [(0.91234, 0.0142, "0.912 ± 0.014"), (0.9, 0.000012, "0.9000 ± 0.0000"), (71.26, 3.14, "71.3 ± 3.1"),
     (0.9, 0.9, "0.900 ± 0.900"), (0.8496, 0.32, "0.850 ± 0.320"), (-0.00001, 0.5, "0.000 ± 0.500")],
)  # fmt: skip
def test_digits_follow_the_uncertainty(mean, margin, text):
    assert rounding.mean_margin(Estimate(mean, mean - margin, mean + margin, 3)) == text


@pytest.mark.parametrize(
    ("mean", "margin", "text"),
    [(0.0123, 0.015, ("+0.012", "[-0.003, 0.027]")), (-0.08, 1.02, ("-0.080", "[-1.100, 0.940]")),
     (-0.00004, 0.9, ("+0.000", "[-0.900, 0.900]")), (-1.234, 3.14, ("-1.2", "[-4.4, 1.9]")),
     (0.5, 0.5, ("+0.50", "[0.00, 1.00]"))],
)  # fmt: skip
def test_a_difference_keeps_its_digits_beside_a_wide_interval(mean, margin, text):
    assert rounding.signed_interval(Estimate(mean, mean - margin, mean + margin, 3)) == text


def test_means_and_difference_fit_together(make_run):
    """Also where the intervals of few seeds are wider than the metric's whole range."""
    values = {"erm": (0.85, 0.80), "sam": (0.85, 0.64)}
    comparison = compare_runs([make_run(m, seed, x) for m, of in values.items() for seed, x in enumerate(of)])
    erm, sam = (float(rounding.mean_margin(m.metric).split(" ± ")[0]) for m in comparison.begun)
    difference, _ = rounding.signed_interval(comparison.others[0].difference.estimate)
    assert float(difference) == pytest.approx(sam - erm) == pytest.approx(-0.08)


def test_digits_without_uncertainty():
    assert [rounding.format_number(x) for x in (0.91234, 0.0231, 15.31, 0.0, None)] == [
        "0.912",
        "0.0231",
        "15.3",
        "0.000",
        "–",
    ]
    assert rounding.format_number(math.inf) == "inf"


@pytest.mark.parametrize(("p", "text"), [(0.0004, "p < 0.001"), (0.0123, "p = 0.012"), (0.456, "p = 0.46")])
def test_p_values(p, text):
    assert rounding.p_value(p) == text
