from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.compare import compare
from deltasam.lab.compare.statistics.conclusion import answer, conclusion, details
from deltasam.lab.compare.statistics.paired import holm
from deltasam.lab.compare.statistics.ranking import critical_difference, rank
from deltasam.lab.compare.statistics.run_group import RunGroup


def values(row: RunGroup, label: str) -> list[float]:
    return [run.metrics[row.metrics[0]] for run in row.results if row.labels[run.method] == label]


def cell(table, row: int, method: str):
    return table.rows[row].cells[table.methods.index(method)]


def column(table, method: str):
    return table.columns[table.methods.index(method)]


def without(row: RunGroup, *labels: str, seeds: tuple[int, ...] = ()) -> RunGroup:
    """The row without these methods' runs, or those of these seeds only."""
    kept = [r for r in row.results if row.labels[r.method] not in labels or (seeds and r.seed not in seeds)]
    return dataclasses.replace(row, results=kept)


def spoilt(row: RunGroup, label: str, seed: int) -> RunGroup:
    def spoil(run):
        metrics = dict.fromkeys(run.metrics, math.nan)
        return dataclasses.replace(run, metrics=metrics) if (row.labels[run.method], run.seed) == (label, seed) else run

    return dataclasses.replace(row, results=[spoil(run) for run in row.results])


def planned(row: RunGroup, *seeds: int) -> RunGroup:
    return dataclasses.replace(row, seeds=dict.fromkeys(row.labels.values(), seeds))


def test_ranks_by_hand():
    means = {"x": {"a": 0.8, "b": 0.1 + 0.7, "c": 0.9}, "y": {"a": math.nan, "b": 0.3, "c": 0.2}}
    ranking = rank(means, ["a", "b", "c"], test=True)
    assert ranking.ranks == {"x": {"a": 2.5, "b": 2.5, "c": 1.0}, "y": {"a": 3.0, "b": 1.0, "c": 2.0}}
    assert ranking.mean == {"a": 2.75, "b": 1.75, "c": 1.5}


def test_friedman_is_scipys(make_rows):
    rows = make_rows(7, 4, effects={"m1": 0.02})
    ranking = compare(rows).ranking
    means = [[np.mean(values(row, m)) for row in rows] for m in ("erm", "m1", "m2", "m3")]
    assert ranking.p_value == pytest.approx(stats.friedmanchisquare(*means).pvalue)


@pytest.mark.parametrize(
    ("methods", "q"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_difference_agrees_with_the_published_table(methods, q):
    """Demsar (2006), table 5(a)."""
    assert critical_difference(methods, 14) == pytest.approx(
        q * math.sqrt(methods * (methods + 1) / (6 * 14)), rel=5e-4
    )


def test_ranks_that_all_tie_do_not_differ():
    ranking = rank({"x": dict.fromkeys("abc", 0.5), "y": dict.fromkeys("abc", 0.7)}, "abc", test=True)
    assert (ranking.p_value, ranking.critical_difference) == (1.0, None)


def test_who_is_apart_by_rank():
    means = {str(i): {"a": 0.9, "b": 0.8, "c": 0.7 - i / 100} for i in range(8)}
    ranking = rank(means, ["a", "b", "c"], test=True)
    # q = 2.343, sqrt(3 * 4 / (6 * 8)) = 0.5
    assert ranking.critical_difference == pytest.approx(2.3437 * 0.5, rel=1e-3)
    assert (ranking.gap("a", "c"), ranking.gap("c", "a"), ranking.gap("a", "b")) == (2.0, -2.0, 0.0)


def test_holm_is_over_every_comparison_of_the_table(make_rows):
    rows = make_rows(3, 4, effects={"m2": 0.03})
    table = compare(rows)
    others = ["m1", "m2", "m3"]
    p = [stats.ttest_rel(values(row, m), values(row, "erm")).pvalue for row in rows for m in others]
    means = {m: np.mean([values(row, m) for row in rows], axis=0) for m in ("erm", *others)}
    p += [stats.ttest_rel(means[m], means["erm"]).pvalue for m in others]
    found = [cell(table, i, m).difference.holm for i in range(3) for m in others]
    found += [column(table, m).difference.holm for m in others]
    assert table.comparisons == 12
    assert found == pytest.approx(holm(p))


def test_average_is_paired_by_seed(make_rows):
    rows = make_rows(4, 3)
    mine, reference = (np.mean([values(row, m) for row in rows], axis=0) for m in ("m1", "erm"))
    found = column(compare(rows), "m1")
    interval = stats.ttest_rel(mine, reference).confidence_interval(0.95)
    assert found.average.mean == pytest.approx(mine.mean())
    assert found.difference.estimate.low == pytest.approx(interval.low)
    assert list(found.difference.by_seed.values()) == pytest.approx(list(mine - reference))


def test_cost_is_the_median_over_rows_of_the_ratio(make_run):
    rows = [
        RunGroup(name, ("accuracy",), [make_run("erm", 0, 0.8, seconds_per_step=erm),
                                       make_run("sam:rho=1", 0, 0.8, seconds_per_step=sam)],
                 {"erm": "erm", "sam:rho=1": "sam"})
        for name, erm, sam in (("a", 1.0, 2.0), ("b", 10.0, 21.0), ("c", 1.0, 9.0))
    ]  # fmt: skip
    assert [c.cost for c in compare(rows).columns] == [1.0, 2.1]


def test_smallest_difference_is_where_the_corrected_test_turns(make_rows):
    (row,) = make_rows(1, 2)
    table = compare([row])
    deviations = np.subtract(values(row, "m1"), values(row, "erm"))
    shifted = deviations - deviations.mean() + table.smallest
    assert stats.ttest_1samp(shifted, 0).pvalue * table.comparisons == pytest.approx(0.05)

    many = compare(make_rows(1, 6))
    half_widths = [cell(many, 0, f"m{i}").difference.estimate.margin for i in range(1, 6)]
    assert many.half_width == pytest.approx(np.median(half_widths))
    ratio = stats.t.ppf(1 - 0.05 / 2 / 5, 4) / stats.t.ppf(0.975, 4)
    assert many.smallest == pytest.approx(np.median(half_widths) * ratio)


def test_hyper_parameters_may_differ_from_row_to_row(make_rows):
    table = compare(make_rows(2, 2))
    assert table.methods == ["erm", "m1"]
    assert [row.cells[1].spec for row in table.rows] == ["m1:rho=0.01", "m1:rho=0.02"]


def test_a_table_that_is_still_running(make_rows):
    rows = make_rows(3, 3, effects={"m1": 0.1})
    rows[1] = without(rows[1], "m1", seeds=(4,))
    rows[2] = without(rows[2], "erm", "m1", "m2")
    table = compare(rows)
    assert [c.verdict for c in table.rows[1].cells] == ["baseline", "unfinished", "noise"]
    assert [c.verdict for c in table.rows[2].cells] == ["waiting"] * 3
    assert cell(table, 1, "m1").difference.holm is None
    assert (table.missing_runs, table.planned_runs) == (16, 45)
    assert list(table.ranking.ranks) == ["task 0"]
    assert table.ranking.p_value is None
    assert {c.verdict for c in table.columns} == {"unfinished"}
    assert "16 of 45 runs are missing" in conclusion(table)


def test_averages_and_ranks_are_over_whole_tasks_and_untested_until_all_are(make_rows):
    rows = make_rows(5, 3, effects={"m1": 0.1})
    rows[1] = without(rows[1], "m2", seeds=(0,))
    table = compare(rows)
    whole = [row for i, row in enumerate(rows) if i != 1]
    assert list(table.ranking.ranks) == [row.name for row in whole]
    assert column(table, "m1").average.mean == pytest.approx(np.mean([values(row, "m1") for row in whole]))
    assert column(table, "m1").difference.holm is None
    assert table.ranking.p_value is None
    assert compare(whole).ranking.p_value < 0.05


def test_what_is_said_early_is_not_taken_back(make_rows):
    """However the missing runs turn out: they are counted from the start."""
    rows = make_rows(6, 6, effects={"m1": 0.03, "m2": 0.02})
    early = compare([rows[0], *(without(row, *(f"m{i}" for i in range(1, 6))) for row in rows[1:])])
    final = compare(rows)
    assert early.comparisons == final.comparisons == 35
    p_values = [(cell(o, 0, f"m{i}").difference.holm) for i in range(1, 6) for o in (early, final)]
    assert all(later <= before for before, later in zip(p_values[::2], p_values[1::2], strict=True))


def test_no_verdict_while_the_baseline_is_unfinished(make_rows):
    table = compare([without(make_rows(1, 3, effects={"m1": 0.1})[0], "erm", seeds=(4,))])
    assert [c.verdict for c in table.rows[0].cells] == ["unfinished", "unknown", "unknown"]


def test_planned_seeds_are_those_given_else_those_of_the_table(make_rows):
    rows = make_rows(2, 2, seeds=3)
    short = without(rows[1], "erm", "m1", seeds=(2,))
    assert cell(compare([rows[0], short]), 1, "m1").missing == (2,)
    assert cell(compare([rows[0], planned(short, 0, 1)]), 1, "m1").finished


def test_a_method_that_is_no_part_of_a_row(make_rows):
    rows = make_rows(4, 4)
    rows[2] = without(rows[2], "m1")
    del rows[2].labels["m1:rho=0.03"]
    table = compare(rows)
    assert cell(table, 2, "m1").verdict == "absent"
    assert list(table.ranking.ranks) == ["task 0", "task 1", "task 3"]
    assert table.ranking.p_value is not None
    assert table.comparisons == 3 * 4 - 1 + 3
    assert "Not part of the table: m1 on 1 task" in details(table)


def test_a_diverged_method_ranks_last_and_is_never_better(make_rows):
    rows = make_rows(4, 4, effects={"m1": 0.2})
    rows[1] = spoilt(rows[1], "m1", 3)
    table = compare(rows)
    assert cell(table, 1, "m1").verdict == "diverged"
    assert table.ranking.ranks["task 1"]["m1"] == 4.0
    assert (column(table, "m1").average, column(table, "m1").verdict) == (None, "diverged")
    assert "Diverged: m1 on task 1 (1 of 5 runs)" in details(table)
    assert "m1 on 3 of 4 tasks" in answer(table)


def test_a_loss_without_end_ranks_last_too(make_rows):
    (row,) = make_rows(1, 3, effects={"m1": 0.2})
    row.results[1] = dataclasses.replace(row.results[1], metrics=row.results[1].metrics | {"loss": math.inf})
    assert row.labels[row.results[1].method] == "m1"
    assert compare([row]).ranking.ranks["task 0"]["m1"] == 3.0


def test_a_baseline_that_diverged_everywhere(make_rows):
    (row,) = make_rows(1, 3)
    for seed in range(5):
        row = spoilt(row, "erm", seed)
    table = compare([row])
    assert [c.verdict for c in table.rows[0].cells] == ["diverged", "unknown", "unknown"]
    assert "Nothing can be concluded" in answer(table)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [], "no rows"),
        (lambda rows: [rows[0], rows[0]], "2 rows are called 'task 0'"),
        (lambda rows: [dataclasses.replace(rows[0], metrics=())], "task 0: no metric is named"),
        (lambda rows: [dataclasses.replace(rows[0], metrics=("f1",))], "erm, seed 0, has no 'f1'; it has: accuracy"),
        (lambda rows: [dataclasses.replace(rows[0], labels={"erm": "erm"})], "m1:rho=0.01 has runs but no label"),
        (lambda rows: [dataclasses.replace(rows[0], labels={"erm": "erm", "m1:rho=0.01": "erm"})], "both labelled"),
        (lambda rows: [dataclasses.replace(rows[0], labels={"erm": "x", "m1:rho=0.01": "sam"})], "no 'erm'"),
        (lambda rows: [dataclasses.replace(rows[0], results=rows[0].results * 2)], "erm, seed 0, is there twice"),
    ],
)  # fmt: skip
def test_what_makes_no_table(make_rows, spoil, message):
    with pytest.raises(UserError, match=message):
        compare(spoil(make_rows(2, 2)))


def test_nothing_has_run(make_rows):
    table = compare([dataclasses.replace(row, results=[]) for row in make_rows(2, 2)])
    assert answer(table) == "No run is finished yet."


def test_one_seed_says_nothing(make_rows):
    text = conclusion(compare(make_rows(3, 3, seeds=1, effects={"m1": 0.5})))
    assert "One seed says nothing about noise" in text
    assert "better than" not in text.lower()


def test_what_is_not_judged_does_not_pass_for_noise(make_run):
    def rows(third: list[float]) -> list[RunGroup]:
        values = {"erm": [0.5, 0.6, 0.7], "sam:rho=1": [0.51, 0.59, 0.7], "asam:rho=1": third}
        runs = [make_run(method, seed, x) for method, of in values.items() for seed, x in enumerate(of)]
        return [RunGroup("sst2", ("accuracy",), runs, dict(zip(values, ("erm", "sam", "asam"), strict=True)))]

    text = conclusion(compare(rows([1.0, 1.1, 1.2])))
    assert text.startswith("No method that can be judged differs from erm on sst2 by more than noise over 3 seeds.")
    assert "Not judged (one seed in common, or exactly the same difference with each): asam on sst2." in text
    judged = conclusion(compare(rows([0.51, 0.61, 0.69])))
    assert judged.startswith("No method differs from erm on sst2 by more than noise over 3 seeds.")
    assert "Not judged" not in judged


def test_only_the_baseline(make_rows):
    assert "nothing to compare" in answer(compare(make_rows(2, 1)))


def test_a_real_effect_is_found_on_tasks_on_the_average_and_by_rank(make_rows):
    table = compare(make_rows(10, 10, effects={"m3": 0.06, "m7": -0.06}))
    assert all(cell(table, i, "m3").verdict in ("better", "noise") for i in range(10))
    found = sum(cell(table, i, "m3").verdict == "better" for i in range(10))
    assert found >= 7
    assert f"Better than erm: m3 on {found} of 10 tasks" in answer(table)
    assert "Worse than erm: m7 on" in answer(table)
    assert "On the average over 10 tasks, better than erm: m3 +0.0" in answer(table)
    assert "m3 above erm" in details(table)


def test_noise_says_how_small_a_difference_could_have_been_seen(make_rows):
    table = compare(make_rows(3, 3))
    assert answer(table).startswith("No method differs from erm on any of the 3 tasks by more than noise over 5 seeds")
    assert f"had to exceed about {table.smallest:.3f}" in details(table)


def test_where_no_difference_could_be_seen_it_is_said(make_rows):
    table = dataclasses.replace(compare(make_rows(3, 3)), smallest=1.0001)
    assert "no difference could have been told from noise" in details(table)
    assert "had to exceed" not in details(table)
    correlation = dataclasses.replace(compare(make_rows(3, 3, metrics=("spearman",))), smallest=1.0001)
    assert "had to exceed about 1.0 to" in details(correlation)  # from -1 to 1


@pytest.mark.slow
def test_pure_noise_rarely_crowns_a_winner(make_rows):
    """A hundred tables of ten by ten without any effect: at most five praise a method, wherever they do it."""
    crowned = claims = 0
    for rng in range(100):
        text = conclusion(compare(make_rows(10, 10, rng=rng)))
        crowned += "etter than" in text or " above erm" in text
        claims += any(word in text for word in ("etter than", "orse than", " above erm", " below erm"))
    assert crowned <= 5
    assert stats.binomtest(claims, 100, 0.05, alternative="greater").pvalue > 0.01


def test_nothing_is_said_of_tasks_that_are_not_judged(make_rows):
    rows = make_rows(3, 3, seeds=3)
    unfinished = planned(dataclasses.replace(rows[2], results=rows[2].results[:-1]), 0, 1, 2)
    two = answer(compare([*rows[:2], dataclasses.replace(unfinished, results=unfinished.results[:4])]))
    assert "differs from erm on any of the 2 tasks that are judged by more than noise" in two
    one = answer(compare([rows[0], *(planned(dataclasses.replace(row, results=[]), 0, 1, 2) for row in rows[1:])]))
    assert "differs from erm on task 0 by more than noise" in one
