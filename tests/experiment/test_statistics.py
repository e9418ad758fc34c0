from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.conclusion import row_conclusion
from deltasam.lab.compare.statistics.paired import Difference, estimate, holm, seeds_needed
from deltasam.lab.compare.statistics.table import Row
from deltasam.lab.data.setting import Setting
from deltasam.lab.train.results import RunResult, StepRecord, by_setting, relative_seconds, seconds_per_step

MakeRun = Callable[..., RunResult]


def runs(make_run: MakeRun, **values: list[float]) -> list[RunResult]:
    return [make_run(method, seed, x) for method, of_seeds in values.items() for seed, x in enumerate(of_seeds)]


def difference_of(comparison: Row, method: str) -> Difference:
    (found,) = [m for m in comparison.begun if m.method == method]
    assert found.difference is not None
    return found.difference


ERM = [0.80, 0.82, 0.79, 0.81, 0.83]
SAM = [0.81, 0.85, 0.80, 0.83, 0.84]


def test_paired_difference_is_scipys_paired_t_test(make_run):
    result = difference_of(compare_runs(runs(make_run, erm=ERM, sam=SAM)), "sam")
    reference = stats.ttest_rel(SAM, ERM)
    interval = reference.confidence_interval(0.95)
    assert result.estimate.mean == pytest.approx(np.mean(np.subtract(SAM, ERM)))
    assert result.estimate.low == pytest.approx(interval.low)
    assert result.estimate.high == pytest.approx(interval.high)
    assert result.p_value == pytest.approx(reference.pvalue)


def test_interval_of_a_mean_by_hand():
    # Standard error 1 / sqrt(3), and t(0.975, 2) = 4.302653.
    result = estimate([1.0, 2.0, 3.0])
    assert (result.mean, result.margin) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))


def test_one_value_has_no_interval():
    assert estimate([0.9]).low is None
    assert estimate([0.9]).margin is None


def test_holm_by_hand():
    # 4 * 0.005, 3 * 0.01, then 2 * 0.03 holds the last one up.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_agrees_with_published_power_tables(effect, seeds):
    assert seeds_needed(effect) == seeds
    assert seeds_needed(-effect) == seeds


def test_no_number_of_seeds_shows_almost_nothing():
    assert seeds_needed(0.001) is None


def test_holm_is_over_the_methods_compared(make_run):
    worse = [x - 0.004 + 0.003 * (-1) ** i for i, x in enumerate(ERM)]
    comparison = compare_runs(runs(make_run, erm=ERM, sam=SAM, asam=worse))
    p_values = [stats.ttest_rel(x, ERM).pvalue for x in (SAM, worse)]
    corrected = [difference_of(comparison, m).holm for m in ("sam", "asam")]
    assert corrected == pytest.approx([2 * p_values[0], p_values[1]])


def test_settings_are_never_pooled(make_run):
    mixed = [make_run("erm", 0, 0.8, setting=Setting(16)), make_run("sam", 0, 0.9, setting=Setting(16, 0.2))]
    with pytest.raises(UserError, match=r"runs in 2 settings \(n=16, n=16 noise=0.2, ...\); compare each alone"):
        compare_runs(mixed)
    old = [mixed[0], make_run("sam", 0, 0.9)]
    with pytest.raises(UserError, match="compare each alone"):
        compare_runs(old)
    assert by_setting([*mixed, *old]) == {Setting(16): [mixed[0]] * 2, Setting(16, 0.2): [mixed[1]], None: [old[1]]}


def test_difference_is_over_the_seeds_both_have(make_run):
    results = [*runs(make_run, erm=ERM), make_run("sam", 1, 0.9), make_run("sam", 3, 0.9), make_run("sam", 9, 0.1)]
    assert difference_of(compare_runs(results), "sam").by_seed == pytest.approx({1: 0.08, 3: 0.09})


@pytest.mark.parametrize(
    ("methods", "wanted", "found"),
    [
        (["sam", "erm:lr=1"], None, "erm:lr=1"),
        (["sam", "asam"], None, "sam"),
        (["sam:rho=1", "sam:rho=2", "erm"], "sam:rho=2", "sam:rho=2"),
        (["ermine", "erm"], None, "erm"),
    ],
)
def test_baseline(make_run, methods, wanted, found):
    comparison = compare_runs([make_run(m, 0, 0.5) for m in methods], wanted)
    assert comparison.baseline == found
    assert [m.method for m in comparison.begun if m.difference is None] == [found]


def test_cost_is_the_median_ratio_of_paired_steps_then_the_mean_over_seeds(make_run):
    def steps(*seconds: float) -> list[StepRecord]:
        return [StepRecord(i + 1, 0.1, 1.0, 1.0, 0.0, 1.0, s, 0.1) for i, s in enumerate(seconds)]

    results = [
        make_run("erm", 0, 0.8, steps=steps(1, 1, 2, 4)),
        make_run("erm", 1, 0.8, steps=steps(1, 1, 1, 1)),
        make_run("sam", 0, 0.8, steps=steps(99, 2, 4, 12)),  # ratios 2, 2, 3
        make_run("sam", 1, 0.8, steps=steps(99, 1, 3, 5)),  # ratios 1, 3, 5
        make_run("asam", 0, 0.8),
    ]
    costs = [m.cost for m in compare_runs(results).begun]
    assert costs == [1.0, pytest.approx(2.5), None]


def test_a_step_of_a_schedule_costs_the_mean_of_its_steps(make_run):
    """A median over all would be the time of whichever kind is more frequent."""

    def steps(ours: list[tuple[float, bool]]) -> list[StepRecord]:
        return [
            StepRecord(i + 1, 0.1, 1.0, 1.1 if perturbed else math.nan, 0.0, 1.0, seconds, 0.1)
            for i, (seconds, perturbed) in enumerate(ours)
        ]

    last = steps([(9, False)] + [(1, False)] * 7 + [(2, True)] * 3)
    held_up = steps([(9, False)] + [(1, False)] * 6 + [(500, False)] + [(2, True)] * 3)
    plain = steps([(9, False)] + [(1, False)] * 10)
    always = steps([(9, True)] + [(2, True)] * 10)
    longer = steps([(9, False)] + [(3, False)] * 5 + [(1, False)] * 5)
    assert seconds_per_step(last) == seconds_per_step(held_up) == pytest.approx(1.3)
    assert relative_seconds(last, plain) == relative_seconds(held_up, plain) == pytest.approx(1.3)
    assert relative_seconds(always, last) == pytest.approx(20 / 13)
    assert relative_seconds(longer, longer) == 1.0
    assert seconds_per_step(plain[:1]) == 9
    assert relative_seconds(plain[:1], plain) is None


def test_peak_memory_is_the_largest_known(make_run):
    results = [make_run("erm", i, 0.8, peak_memory_mib=m) for i, m in enumerate([100.0, None, 300.0])]
    assert compare_runs(results).begun[0].peak_memory_mib == 300.0
    assert compare_runs(results[1:2]).begun[0].peak_memory_mib is None


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda run: [], "no finished runs"),
        (lambda run: [run("erm", 0, 0.8), run("erm", 0, 0.9)], "erm, seed 0, is there twice"),
        (lambda run: [run("erm", 0, 0.8), run("sam", 0, 0.8, metric="f1")], "'f1' where others report 'accuracy'"),
    ],
)
def test_what_cannot_be_compared(make_run, results, message):
    with pytest.raises(UserError, match=message):
        compare_runs(results(make_run))


def test_unknown_baseline(make_run):
    with pytest.raises(UserError, match="'adam' is not among the methods; choose one of: erm"):
        compare_runs(runs(make_run, erm=ERM), "adam")


def test_conclusion_names_what_is_better_and_what_is_worse(make_run):
    text = row_conclusion(
        compare_runs(runs(make_run, erm=ERM, sam=SAM, asam=[x - 0.1 - y / 50 for x, y in zip(ERM, SAM, strict=True)]))
    )
    assert text.startswith("Better than erm in accuracy: sam +0.016")
    assert "Worse than erm in accuracy: asam -0.11" in text
    assert "5 seeds" in text


def test_conclusion_of_noise_says_how_many_seeds_it_would_take(make_run):
    noise = [0.01, -0.012, 0.004, -0.006, 0.009]
    comparison = compare_runs(
        runs(make_run, erm=ERM, sam=[x + y for x, y in zip(ERM, noise, strict=True)], asam=ERM[::-1])
    )
    text = row_conclusion(comparison)
    assert text.startswith("No method differs from erm in accuracy by more than noise over 5 seeds.")
    assert f"very roughly {difference_of(comparison, 'sam').seeds_needed} seeds would be needed" in text


def test_significant_alone_but_not_among_many(make_run):
    others = {f"m{i}": ERM[i % 5 :] + ERM[: i % 5] for i in range(1, 9)}
    lone = [0.005, 0.011, 0.003, 0.007, 0.012]
    results = runs(make_run, erm=ERM, sam=[x + y for x, y in zip(ERM, lone, strict=True)], **others)
    assert difference_of(compare_runs(results), "sam").p_value < 0.05
    text = row_conclusion(compare_runs(results))
    assert "better" not in text.lower()
    assert "corrected for comparing several methods" in text


def test_one_seed_concludes_nothing(make_run):
    text = row_conclusion(compare_runs(runs(make_run, erm=[0.5], sam=[0.99])))
    assert "nothing can be concluded about sam against erm" in text
    assert "at least 3 seeds" in text


def test_single_method(make_run):
    assert "nothing to compare" in row_conclusion(compare_runs(runs(make_run, erm=ERM)))


def test_the_same_difference_twice_is_no_certainty(make_run):
    # 0.81 - 0.80 and 0.83 - 0.82 differ in their last bits; a t-test on that would be "certain".
    comparison = compare_runs(runs(make_run, erm=[0.80, 0.82], sam=[0.81, 0.83]))
    assert difference_of(comparison, "sam").holm is None
    assert "Nothing can be concluded about sam" in row_conclusion(comparison)


def test_identical_results_are_no_difference(make_run):
    comparison = compare_runs(runs(make_run, erm=ERM, sam=ERM))
    assert difference_of(comparison, "sam").holm == 1.0
    assert "sam does not differ from erm in accuracy by more than noise over 5 seeds" in row_conclusion(comparison)


def test_a_diverged_method_is_never_better(make_run):
    comparison = compare_runs(runs(make_run, erm=ERM, sam=[*(x + 0.1 for x in SAM[:4]), math.nan]))
    text = row_conclusion(comparison)
    assert difference_of(comparison, "sam").p_value < 0.001
    assert "better" not in text.lower()
    assert "sam diverged (no finite accuracy or loss) in 1 of 5 runs" in text


def test_a_loss_without_end_is_divergence_too(make_run):
    lost = make_run("sam", 0, 0.5, metrics={"accuracy": 0.5, "loss": math.inf})
    (_, sam) = compare_runs([make_run("erm", 0, 0.8), lost]).begun
    assert sam.diverged == (0,)
    assert sam.loss is None


def test_a_diverged_baseline_is_said(make_run):
    text = row_conclusion(compare_runs(runs(make_run, erm=[math.nan, *ERM[1:]], sam=SAM)))
    assert "erm diverged (no finite accuracy or loss) in 1 of 5 runs; comparisons with it leave" in text
    assert "4 seeds" in text


def test_no_finite_pair(make_run):
    text = row_conclusion(compare_runs([make_run("erm", 0, 0.8), make_run("sam", 1, 0.9)]))
    assert "Nothing can be concluded about sam against erm" in text


@pytest.mark.parametrize(
    ("seeds", "examples"), [(2, None), (3, None), (3, 200), (5, None)], ids=lambda value: str(value)
)
def test_pure_noise_rarely_passes_for_a_difference(make_run, seeds, examples):
    """Four methods with the baseline's true accuracy: at most one comparison in twenty claims anything.

    The true rate lies just below 5 %, so the observed one may exceed it by chance; only an excess that chance
    does not explain is a failure. Without Holm's correction it would be near 15 %.
    """
    noise = np.random.default_rng(0)
    claims, simulations = 0, 500
    for _ in range(simulations):
        shared = noise.normal(0.85, 0.01, seeds)
        values = shared + noise.normal(0, 0.01, (5, seeds))
        if examples:
            values = noise.binomial(examples, np.clip(values, 0, 1)) / examples
        results = [make_run(m, s, values[i, s]) for i, m in enumerate(["erm", *"abcd"]) for s in range(seeds)]
        text = row_conclusion(compare_runs(results))
        claims += "etter than" in text or "orse than" in text
    assert stats.binomtest(claims, simulations, 0.05, alternative="greater").pvalue > 0.001
