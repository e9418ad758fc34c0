"""The choice among candidates."""

from __future__ import annotations

import math

import pytest

from deltasam.errors import UserError
from deltasam.experiment.results import RunResult
from deltasam.reproduce.search import candidates, choose

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
