"""What the pictures show is what the results say."""

from __future__ import annotations

import dataclasses

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltasam.diagnostics import (
    AverageSharpness,
    ExampleGeometry,
    HessianSpectrum,
    average_sharpness,
    example_geometry,
    hessian_spectrum,
    plot_examples,
    plot_m_sharpness,
    plot_norms,
    plot_sharpness,
    plot_spectrum,
    sharpness,
)
from quadratic import EXAMPLES, Quadratic


@pytest.fixture
def model() -> Quadratic:
    return Quadratic()


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def test_bars_with_intervals(model: Quadratic, ax: Axes) -> None:
    one = sharpness(model, model.closures(), m=1)
    other = dataclasses.replace(one, rise=2 * one.rise, standard_error=None)
    plot_sharpness({"erm": one, "sam": other}, ax)
    assert [bar.get_height() for bar in ax.patches] == [one.rise, other.rise]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["erm", "sam"]
    (interval,) = ax.containers[1].lines[2]
    low, high = interval.get_segments()[0][:, 1]
    assert (low + high) / 2 == pytest.approx(one.rise)
    assert (high - low) / 2 == pytest.approx(one.standard_error)
    assert "± one standard error" in ax.get_ylabel()
    assert ax.get_title() == "worst-case sharpness, rho = 0.02, m = 1"


def test_bars_of_the_average_case(model: Quadratic, ax: Axes) -> None:
    result = average_sharpness(model, model.closures(), adaptive=True)
    assert isinstance(result, AverageSharpness)
    plot_sharpness(result, ax)
    assert ax.patches[0].get_height() == result.rise
    assert ax.get_title() == "average-case sharpness, adaptive, sigma = 0.003"


def test_a_curve_over_m(model: Quadratic, ax: Axes) -> None:
    curve = [sharpness(model, model.closures([6, 6]), m=m) for m in (None, 3, 1, 6)]
    plot_m_sharpness({"erm": curve}, ax)
    line = ax.lines[0]
    assert list(line.get_xdata()) == [1, 3, 6, EXAMPLES]
    assert list(line.get_ydata()) == [curve[i].rise for i in (2, 1, 3, 0)]
    assert ax.get_xscale() == "log"
    assert ax.get_legend().get_texts()[0].get_text() == "erm"


def test_only_like_is_drawn_with_like(model: Quadratic, ax: Axes) -> None:
    near, far = (sharpness(model, model.closures(), rho=rho) for rho in (0.01, 0.02))
    with pytest.raises(ValueError, match=r"must be measured alike.*rho = 0\.01.*rho = 0\.02"):
        plot_sharpness({"a": near, "b": far}, ax)
    with pytest.raises(ValueError, match="must be measured alike"):
        plot_m_sharpness([near, far], ax)
    with pytest.raises(ValueError, match="none"):
        plot_sharpness({}, ax)


def test_examples(model: Quadratic, ax: Axes) -> None:
    result = example_geometry(model, model.closures())
    assert isinstance(result, ExampleGeometry)
    plot_examples(result, ax)
    points = ax.collections[0].get_offsets()
    assert points[:, 0].tolist() == pytest.approx(result.losses)
    assert points[:, 1].tolist() == pytest.approx(result.norms)
    plot_norms({"a": result, "b": result}, other := Figure().subplots())
    assert sum(bar.get_height() for bar in other.patches) == 2 * EXAMPLES
    assert "gradient norm" in other.get_xlabel()


def test_eigenvalues(model: Quadratic, ax: Axes) -> None:
    result = hessian_spectrum(model, model.closures(), k=3)
    assert isinstance(result, HessianSpectrum)
    plot_spectrum({"a": result, "b": dataclasses.replace(result, eigenvalues=(9.0,))}, ax)
    assert [bar.get_height() for bar in ax.patches] == [*result.eigenvalues, 9.0]
    trace = f"a: trace {result.trace:.3g} ± {result.trace_standard_error:.2g} (standard error)"
    assert ax.get_legend().get_texts()[0].get_text() == trace
    assert list(ax.get_xticks()) == [1, 2, 3]


def test_a_new_figure_unless_axes_are_given(model: Quadratic) -> None:
    import matplotlib.pyplot as plt

    ax = plot_sharpness(sharpness(model, model.closures()))
    assert ax.figure in [plt.figure(number) for number in plt.get_fignums()]
    plt.close(ax.figure)
