from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from importlib import resources
from pathlib import Path

import pytest
import vl_convert

from deltasam.errors import UserError
from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.conclusion import row_conclusion
from deltasam.lab.data.setting import Setting
from deltasam.lab.report import series
from deltasam.lab.report.charts import Charts
from deltasam.lab.report.page import write_report
from deltasam.lab.train.majority_class import OneClass
from deltasam.lab.train.results import EvaluationRecord, ExampleRecord, RunResult, StepRecord, by_setting

METHODS = ["erm", "sam:rho=0.05", "delta_sam:rho=0.05,tau=1", "asam:rho=5"]
HOSTILE = ["<script>window.hacked=1</script>", "</script><!-- <img src=x onerror=window.hacked=1>", "{{ 7*7 }}"]


def page(results, path: Path, config=None) -> str:
    write_report(results, config or {}, path / "report.html")
    return (path / "report.html").read_text(encoding="utf-8")


def data(text: str) -> dict:
    """What the page's own script reads of the first setting."""
    return parts(text)["part-0"]


def parts(text: str) -> dict:
    """What the page's own script reads, found the way a browser finds it: up to the first end tag."""
    return json.loads(re.search(r'id="report-data">(.*?)</script', text, re.DOTALL)[1])


def step(number: int, loss: float, perturbed: float = 0.0, seconds: float = 0.1) -> StepRecord:
    return StepRecord(number, 0.1, loss, perturbed, 0.1, 1.0, seconds, 0.1)


def test_the_answer_comes_first_and_the_table_next(make_results, tmp_path):
    results = make_results(METHODS, 3)
    text = page(results, tmp_path)
    answer = html.escape(row_conclusion(compare_runs(results)), quote=False).replace("'", "&#39;")
    assert 0 < text.index(answer) < text.index("<table") < text.index("<figure")


def test_runs_that_do_no_better_than_one_class_are_counted(make_results, tmp_path):
    """The accuracies of the last evaluations, beside the share of the largest class; a hostile name stays text."""
    results = make_results(METHODS, 3)
    share = sorted(run.metrics["accuracy"] for run in results)[4]  # five of twelve
    known = [dataclasses.replace(run, one_class=OneClass(HOSTILE[0], share)) for run in results]
    again = [RunResult.from_json(run.to_json()) for run in known]
    assert again == known
    said = html.unescape(page(again, tmp_path))
    assert f"5 of 12 runs do no better than predicting {HOSTILE[0]!r} for every row" in said
    assert f"has an accuracy of {share:.4f} on the evaluation rows." in said
    assert HOSTILE[0] not in page(again, tmp_path)
    low = [dataclasses.replace(run, one_class=OneClass("yes", 0.1)) for run in results]
    for nothing_to_say in (results, low):  # results of before, and runs that are all better
        assert "no better than" not in page(nothing_to_say, tmp_path)


@pytest.mark.parametrize(
    ("methods", "seeds", "options", "charts"),
    [
        (METHODS, 3, {}, 7),
        (METHODS, 1, {}, 7),
        (METHODS, 3, {"noise": 0.2}, 10),
        (["erm"], 1, {}, 5),
        (METHODS, 2, {"regression": True, "weighted": ()}, 6),
        (METHODS, 3, {"diverged": [(METHODS[1], s) for s in range(3)]}, 7),
        (["erm", *(f"m{i}:rho=0.05,alpha=0.1" for i in range(9))], 5, {"steps": 2000}, 6),
    ],
    ids=["usual", "one seed", "label noise", "one method", "regression", "diverged", "ten methods"],
)
def test_shapes_of_comparisons(make_results, tmp_path, methods, seeds, options, charts):
    text = page(make_results(methods, seeds, **options), tmp_path)
    assert len(data(text)["charts"]) == charts
    assert len(re.findall('<div class="chart"', text)) == charts
    assert len(text.encode()) < 5_000_000


def test_text_from_data_cannot_become_markup(make_results, tmp_path):
    results = make_results(["erm", *HOSTILE, "delta_sam"], 2, texts=[*HOSTILE, "half a \ud800 pair"])
    text = page(results, tmp_path, {HOSTILE[0]: HOSTILE[1], "nested": {"deep": HOSTILE}})
    assert "<img src=x" not in text
    assert text.lower().count("<script") == text.lower().count("</script") == 2
    assert "<!--" not in text
    assert data(text)["datasets"]["costs"][2]["method"] == HOSTILE[0]


def test_options_are_shown_under_dotted_names(make_results, tmp_path):
    text = page(make_results(["erm"], 1), tmp_path, {"optimizer": {"lr": 2e-05}, "seeds": [0, 1]})
    assert re.search(r"optimizer\.lr</th><td[^>]*>2e-05<", text)
    assert re.search(r"seeds</th><td[^>]*>0, 1<", text)


def cells(html_rows: str) -> list[list[str]]:
    """The text of every cell of the rows in a piece of HTML."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html_rows, re.DOTALL)
    return [
        [" ".join(re.sub("<[^>]*>", " ", c).split()) for c in re.findall(r"<td.*?</td>", r, re.DOTALL)] for r in rows
    ]


def inspections(text: str) -> dict[str, dict[str, list[list[str]]]]:
    """By method and caption, the rows of the example tables."""
    found = {}
    for block in text.split('<div class="inspection" data-method="')[1:]:
        tables = block.split('<table class="examples" role="table">')[1:]
        captions = [re.search("<caption>(.*?)</caption>", table)[1] for table in tables]
        found[block.split('"')[0]] = {
            caption: cells(table.split("<tbody")[1].split("</tbody>")[0])
            for caption, table in zip(captions, tables, strict=True)
        }
    return found


def test_examples_are_ranked_by_all_there_is(make_results, tmp_path):
    runs = make_results(["erm", "delta_sam"], 2)
    found = inspections(page(runs, tmp_path))
    assert list(found["erm"]) == ["Largest norm", "Smallest norm", "Largest loss", "Smallest loss"]
    assert list(found["delta_sam"])[:2] == ["Largest weight", "Smallest weight"]
    ranked = runs[2].ranked("loss")
    for title, expected in (("Largest loss", ranked[:10]), ("Smallest loss", ranked[::-1][:10])):
        rows = found["delta_sam"][title]
        assert [row[0] for row in rows] == [rounding.format_number(e.loss) for e in expected]
        assert [row[3] for row in rows] == [e.text for e in expected]
        assert [row[1] for row in rows] == [e.label for e in expected]  # nothing is flipped without noise


def test_flipped_labels_and_wrong_predictions_are_said_in_words(make_results, tmp_path):
    (run,) = make_results(["erm"], 1, noise=0.3)
    rows = inspections(page([run], tmp_path))["erm"]["Largest loss"]
    expected = run.ranked("loss")[:10]
    flips = [f"{e.label} ⚑ flipped, was {e.clean_label}" if e.flipped else e.label for e in expected]
    assert [row[1] for row in rows] == flips
    assert any("⚑" in flip for flip in flips)
    assert [row[2] for row in rows] == [f"{e.prediction}{'' if e.correct else ' ✕ not the label'}" for e in expected]


def test_how_well_wrong_labels_are_found(make_results, tmp_path):
    runs = make_results(METHODS, 3, noise=0.3)
    text = page(runs, tmp_path)
    rows = cells(text.split('<table class="stacking detection"')[1].split("<tbody")[1].split("</tbody>")[0])
    for row, m in zip(rows, compare_runs(runs).begun, strict=True):
        assert row == [rounding.mean_margin(m.auroc.get(by)) for by in ("weight", "norm", "loss")]
    assert rows[0][0] == "–"  # erm has no weights
    drawn = data(text)["datasets"]["detection-weight"]
    assert [row["seed"] for row in drawn if "seed" in row] == [0, 1, 2]
    assert "0.5 is chance" in text


def test_old_results_show_what_they_have(make_run, tmp_path):
    examples = [ExampleRecord(i, f"text {i}", "positive", weight=float(i)) for i in range(3)]
    found = inspections(page([make_run("delta_sam", 0, 0.9, examples=examples)], tmp_path))["delta_sam"]
    assert found == {
        "Largest weight": [["2.00", "positive", "text 2"], ["1.00", "positive", "text 1"]],
        "Smallest weight": [["0.000", "positive", "text 0"]],
    }


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="no finished runs"):
        write_report([], {}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_step_rows_average_windows_of_steps(make_run):
    # 120 steps in windows of 2; the first step is left out.
    run = make_run("sam", 7, 0.9, steps=[step(i, loss=i, perturbed=i + 0.5, seconds=i) for i in range(1, 121)])
    rows = [row for row in series.step_rows([run]) if "seed" in row]
    assert series.window([run]) == 2
    assert len(rows) == 60
    assert rows[1] == {"method": "sam", "seed": 7, "step": 3.5, "loss": 3.5, "gap": 0.5}
    assert rows[0]["step"] == 2


def test_means_are_over_the_seeds_that_have_a_number(make_run):
    runs = [make_run("sam", i, 0.9, steps=[step(1, 0.0), step(2, loss)]) for i, loss in enumerate([1.0, 4.0, math.nan])]
    assert series.step_rows(runs)[3:] == [{"method": "sam", "step": 2.0, "loss": 2.5, "gap": -2.5}]
    assert series.cost_rows(runs)[3:] == [{"method": "sam", "milliseconds": 100.0}]


def test_a_schedule_s_plain_steps_leave_the_gap_of_the_others(make_run):
    def step(i: int) -> StepRecord:
        return StepRecord(i, i / 129, 2.0, 2.5 if i % 3 == 0 else math.nan, 0.0, 1.0, 0.1, 0.1)

    rows = series.step_rows([make_run("sam@every=3", 0, 0.8, steps=[step(i) for i in range(1, 130)])])
    points = [row["gap"] for row in rows if "seed" in row]
    assert len(points) == 43  # windows of 3 steps
    assert set(points) == {0.5}


def test_rows_hold_no_number_json_lacks(make_run):
    steps = [step(1, 1.0), step(2, math.nan), step(3, math.inf)]
    evaluations = [EvaluationRecord(3, 1.0, {"accuracy": 0.5, "loss": math.nan})]
    run = make_run("sam", 0, 0.5, steps=steps, evaluations=evaluations)
    rows = series.step_rows([run]) + series.evaluation_rows([run])
    assert [row["loss"] for row in rows] == [None] * 6  # two steps and an evaluation, then the means over seeds


def test_many_evaluations_are_thinned_to_the_last(make_run):
    evaluations = [EvaluationRecord(i, 1.0, {"accuracy": 0.5, "loss": 1.0}) for i in range(1, 1001)]
    rows = [r for r in series.evaluation_rows([make_run("sam", 0, 0.5, evaluations=evaluations)]) if "seed" in r]
    assert len(rows) <= 60
    assert rows[-1]["step"] == 1000


@pytest.mark.parametrize(("steps", "windows"), [(40, None), (240, "averaged over windows of 4 steps")])
def test_only_averages_are_called_so(make_results, tmp_path, steps, windows):
    text = page(make_results(METHODS[:2], 2, steps=steps), tmp_path)
    assert ("averaged over windows" in text) == bool(windows)
    assert (windows or "") in text


def test_a_run_that_diverged_does_not_stretch_the_axis(make_run):
    sound = make_run("erm", 0, 0.8, steps=[step(1, 9.0), step(2, 1.0), step(3, 2.0)])
    lost = make_run("sam", 0, 0.8, steps=[step(1, 9.0), step(2, 1e9), step(3, math.nan)])
    rows = series.step_rows([sound, lost])
    assert series.span([sound, lost], rows, "loss") == [1.0, 2.0]
    assert series.span([lost], rows[2:], "loss") is None


@pytest.mark.parametrize("value", [0.575, 0.0, 1.0])
def test_a_constant_curve_has_room_and_an_axis_that_shows_its_value(make_run, value):
    runs = [make_run("erm", 0, value), make_run("sam", 0, value)]
    rows = [{"method": run.method, "seed": 0, "metric": value} for run in runs]
    low, high = series.span(runs, rows, "metric")
    assert low < value < high
    assert high - low < 0.11
    curve = Charts(["erm", "sam"], "erm").curves("rows", "metric", "accuracy", [low, high], dots=True)
    svg = vl_convert.vegalite_to_svg({**curve, "width": 300, "datasets": {"rows": [r | {"step": 1} for r in rows]}})
    ticks = [float(t.replace("\u2212", "-")) for t in re.findall(r">(\u2212?[0-9.]+)</text>", svg)]
    assert sum(abs(tick - value) <= 0.05 for tick in ticks) > 2


def test_shares_of_weights_add_up_and_keep_the_widest(make_run):
    run = make_run("delta_sam", 0, 0.8, weights=[1.0] * 998 + [0.5, 500.0])
    rows = series.weight_rows([run, make_run("erm", 0, 0.8)])
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert rows[-1]["high"] < 500
    assert {row["method"] for row in rows} == {"delta_sam"}


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_meets_wcag_aa(scheme):
    """Text 4.5:1 on the page and on cards, marks 3:1."""
    css = resources.files("deltasam.lab.report").joinpath("styles/base.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", css.split(":root {")[scheme + 1].split("}")[0]))
    assert len([name for name in colors if name.startswith("series")]) == 10
    for name, color in colors.items():
        needed = {"text": 4.5, "muted": 4.5, "good": 4.5, "bad": 4.5, "link": 4.5}.get(name, 3.0)
        for ground in ("page", "card") if name not in ("page", "card", "grid") else ():
            light, dark = sorted((luminance(color), luminance(colors[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= needed, f"{name} on {ground}"


@pytest.fixture
def wide(make_results):
    """Runs in four settings, two along each axis."""
    settings = [Setting(100), Setting(100, 0.4), Setting(500), Setting(500, 0.4)]
    return [dataclasses.replace(r, setting=s) for s in settings for r in make_results(METHODS, 3)]


def test_each_setting_has_a_part_of_its_own(wide, tmp_path):
    noisy = [r for r in wide if r.setting == Setting(500, 0.4)]
    for i, run in enumerate(wide):  # sam is much better, in one setting only
        if run in noisy and run.method.startswith("sam"):
            better = run.metrics["accuracy"] + 0.1 + 0.001 * run.seed
            wide[i] = dataclasses.replace(run, metrics={**run.metrics, "accuracy": better})
    text = page(wide, tmp_path)
    titles = re.findall(r"<article[^>]*>\n<h2>(.*?)</h2>", text)
    assert titles == [s.title for s in dict.fromkeys(r.setting for r in wide)]
    first = text.split('<dl class="answers">')[1].split("</dl>")[0]
    answers = [html.unescape(answer) for answer in re.findall(r"<dd>(.*?)</dd>", first)]
    assert answers == [row_conclusion(compare_runs(runs)) for runs in by_setting(wide).values()]
    assert answers[0] == answers[1] == answers[2] != answers[3]  # the other three are the same runs
    assert len(re.findall('<table class="methods ', text)) == 4
    drawn = parts(text)
    assert set(drawn) == {"over", "part-0", "part-1", "part-2", "part-3"}
    assert drawn["part-3"]["datasets"]["differences"] != drawn["part-1"]["datasets"]["differences"]
    places = {f"chart-{part}-{key}" for part in drawn for key in drawn[part]["charts"]}
    assert places == set(re.findall(r'class="chart" id="([^"]*)"', text))
    assert len(re.findall(r' id="', text)) == len(set(re.findall(r' id="([^"]*)"', text)))


def test_charts_over_the_axes(wide, tmp_path):
    over = parts(page(wide, tmp_path))["over"]
    assert len(over["charts"]) == 8  # level and difference: over noise at two sizes, over size with and without noise
    rows = over["datasets"]["axis-0-difference"]
    assert {row["place"] for row in rows} == {"0 %", "40 %"}
    comparison = compare_runs([r for r in wide if r.setting == Setting(100, 0.4)])
    (sam,) = [m for m in comparison.others if m.method.startswith("sam")]
    (row,) = [r for r in rows if r["place"] == "40 %" and r["method"] == sam.method]
    assert row["mean"] == pytest.approx(sam.difference.estimate.mean, rel=1e-4)
    assert row["low"] == pytest.approx(sam.difference.estimate.low, rel=1e-4)


def test_axes_stand_in_order(make_results, tmp_path):
    runs = [dataclasses.replace(r, setting=Setting(n)) for n in (1000, 20, 300) for r in make_results(METHODS, 2)]
    over = parts(page(runs, tmp_path))["over"]
    assert over["charts"]["axis-0-level"]["spec"]["layer"][0]["encoding"]["x"]["sort"] == ["20", "300", "1000"]
    assert len(over["charts"]) == 2


def test_one_setting_is_the_page_as_it_was(make_results, tmp_path):
    runs = make_results(METHODS, 2)
    plain = page(runs, tmp_path)
    assert page([dataclasses.replace(r, setting=Setting(320, 0.2)) for r in runs], tmp_path) == plain
    assert parts(plain)["over"] == {"charts": {}, "datasets": {}}
