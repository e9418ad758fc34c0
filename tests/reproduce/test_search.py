"""The choice among candidates."""

from __future__ import annotations

import math

import pytest

from deltasam.errors import UserError
from deltasam.lab.reproduce.search import candidates, choose, widened
from deltasam.lab.train.results import RunResult

METHODS = {"erm": ["erm"], "sam": ["sam:rho=1", "sam:rho=2", "sam:rho=3"]}


def run(method: str, value: float, seed: int = 0) -> RunResult:
    return RunResult(method, seed, "f1", {"f1": value, "accuracy": 1 - value}, 1.0, None)


def test_only_what_must_be_chosen_is_tried() -> None:
    assert candidates(METHODS) == METHODS["sam"]


def test_the_best_mean_of_the_main_metric() -> None:
    values = {"sam:rho=1": (0.9, 0.1), "sam:rho=2": (0.6, 0.7), "sam:rho=3": (0.6, 0.6)}
    runs = [run(spec, v, seed) for spec, of in values.items() for seed, v in enumerate(of)]
    assert choose(METHODS, runs) == {"erm": "erm", "sam": "sam:rho=2"}


def test_of_equals_the_first() -> None:
    assert choose(METHODS, [run(spec, 0.5) for spec in METHODS["sam"]])["sam"] == "sam:rho=1"


def test_a_diverged_run_is_the_worst() -> None:
    runs = [run("sam:rho=1", 0.9, 0), run("sam:rho=1", math.nan, 1)]
    runs += [run(spec, 0.1, seed) for spec in METHODS["sam"][1:] for seed in (0, 1)]
    assert choose(METHODS, runs)["sam"] == "sam:rho=2"
    with pytest.raises(UserError, match=r"sam: every candidate diverged.*sam:rho=1, sam:rho=2"):
        choose(METHODS, [run(spec, math.nan) for spec in METHODS["sam"]])


def test_rows_that_choose_the_epoch_choose_the_candidate() -> None:
    def noisy(method: str, clean: float, chosen: float) -> RunResult:
        metrics = {"accuracy_selected": clean, "accuracy_selection_selected": chosen}
        return RunResult(method, 0, "accuracy_selected", metrics, 1.0, None)

    runs = [noisy("sam:rho=1", 0.9, 0.1), noisy("sam:rho=2", 0.1, 0.9), noisy("sam:rho=3", 0.5, 0.5)]
    assert choose(METHODS, runs)["sam"] == "sam:rho=2"


FULL = [f"sam:rho={rho},share=micro-batch" for rho in ("0.05", "0.1", "0.2")]


@pytest.mark.parametrize(
    ("best", "added"), [(0, ["sam:rho=0.025,share=micro-batch"]), (1, []), (2, ["sam:rho=0.4,share=micro-batch"])]
)
def test_a_best_at_the_edge_asks_for_more(best: int, added: list[str]) -> None:
    methods = {"erm": ["erm"], "sam": FULL}
    runs = [run(spec, float(number == best)) for number, spec in enumerate(FULL)]
    assert widened(methods, runs, 2) == {"erm": ["erm"], "sam": [*FULL, *added]}
    assert widened(methods, runs[:2], 2)["sam"] == FULL  # not all are there
    assert widened(methods, runs, 0)["sam"] == FULL


def test_it_goes_on_as_long_as_the_edge_is_best() -> None:
    methods, values = {"sam": FULL}, {0.05: 0.1, 0.1: 0.2, 0.2: 0.3, 0.4: 0.4, 0.8: 0.5, 1.6: 0.6}
    runs = [run(f"sam:rho={rho},share=micro-batch", value) for rho, value in values.items()]
    assert [spec.split(",")[0] for spec in widened(methods, runs, 2)["sam"][3:]] == ["sam:rho=0.4", "sam:rho=0.8"]
    assert len(widened(methods, [*runs, run(FULL[1], 9.0)], 2)["sam"]) == 3  # inside it is better


def test_there_may_be_no_more() -> None:
    smoothing = [f"erm+label_smoothing={share}" for share in ("0.3", "0.9")]
    runs = [run(spec, float(number)) for number, spec in enumerate(smoothing)]
    assert widened({"x": smoothing}, runs, 3)["x"] == smoothing  # 2.7 is no share
    other = ["sam:rho=0.05,share=micro-batch", "erm"]
    assert widened({"x": other}, [run(spec, 1.0) for spec in other], 3)["x"] == other
    several = ["freelb:adv_lr=0.04,steps=2", "freelb:adv_lr=0.2,steps=3"]
    assert widened({"x": several}, [run(spec, 1.0) for spec in several], 3)["x"] == several
