"""Final models with changed weights: measured in a run, kept in its result, paired by seed, and shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from deltasam.diagnostics import after_noise
from deltasam.lab.compare.after_rows import after_rows
from deltasam.lab.compare.after_training import measure_after
from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.compare.statistics.paired import Estimate, estimate
from deltasam.lab.compare.text_tables import after_table
from deltasam.lab.data import TextData
from deltasam.lab.report.page import write_report
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run, train_run

CHANGES = [
    "as trained", "8 bits", "4 bits", "3 bits", "30 % pruned", "50 % pruned", "60 % pruned", "noise 0.1", "noise 0.2",
]  # fmt: skip


def trained(data: TextData, config: TrainConfig) -> Run:
    run = Run(data, dataclasses.replace(config, epochs=1), "erm", 3)
    train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)
    return run


def test_is_the_evaluation_with_changed_weights(data: TextData, config: TrainConfig) -> None:
    run = trained(data, config)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    found = measure_after(run)
    assert list(found) == CHANGES
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    last = run.evaluations[-1].metrics
    assert found["as trained"] == {"accuracy": last["accuracy"], "loss": pytest.approx(last["loss"], rel=1e-6)}
    (noise, _) = after_noise(run.model, run.task.evaluate, seed=3).levels  # that of the run's seed
    assert found["noise 0.1"]["loss"] == pytest.approx(noise.metrics["loss"], rel=1e-6)
    embeddings = {id(m.weight) for m in run.model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for weight in run.model.parameters():
            if weight.ndim == 2 and id(weight) not in embeddings:
                smallest = weight.abs().flatten().argsort()[: round(weight.numel() / 2)]
                weight.view(-1)[smallest] = 0
    by_hand = run.task.evaluate()
    assert found["50 % pruned"]["loss"] == pytest.approx(by_hand["loss"], rel=1e-5)
    assert found["50 % pruned"]["loss"] != pytest.approx(last["loss"], rel=1e-4)


def test_lower_layers_change_too_where_their_outputs_are_kept(data: TextData, config: TrainConfig) -> None:
    run = trained(data, dataclasses.replace(config, train_layers=1))
    whole = Run(data, config, "erm", 3)
    whole.model.load_state_dict(run.model.state_dict())
    calls: list[int] = []
    lowest = next(m for m in run.model.modules() if isinstance(m, nn.Linear))
    with lowest.register_forward_hook(lambda *_: calls.append(0)):
        run.task.evaluate()
        assert not calls  # what is kept is used
        kept, computed = measure_after(run), measure_after(whole)
    assert len(calls) >= 17
    for change in CHANGES:
        assert kept[change] == pytest.approx(computed[change], rel=1e-6)
    with run.task.all_layers():
        assert run.task._lower is None
    assert run.task._lower is not None


def runs_of(make_run: Callable[..., RunResult]) -> list[RunResult]:
    """Two methods and three seeds; the second is better by 0.01, 0.02 and 0.06 at 4 bits."""
    gains = {0: 0.01, 1: 0.02, 2: 0.06}
    return [
        make_run(
            method,
            seed,
            0.9,
            after={
                "as trained": {"accuracy": 0.9 + 0.01 * seed, "loss": 0.3},
                "4 bits": {"accuracy": 0.7 + 0.05 * seed + (gains[seed] if method == "sam" else 0), "loss": 0.5},
            },
        )
        for method in ("erm", "sam")
        for seed in gains
    ]


def near(found: Estimate | None, values: list[float]) -> bool:
    """Whether an estimate is that of some values, but for rounding."""
    assert found
    expected = dataclasses.astuple(estimate(values))
    return dataclasses.astuple(found) == pytest.approx(expected, rel=1e-9)


def test_differences_are_paired_by_seed(make_run: Callable[..., RunResult]) -> None:
    results = [RunResult.from_json(run.to_json()) for run in runs_of(make_run)]
    rows = after_rows(compare_runs(results), results)
    assert [(row.change, row.method) for row in rows] == [
        ("as trained", "erm"), ("as trained", "sam"), ("4 bits", "erm"), ("4 bits", "sam")
    ]  # fmt: skip
    assert [cell.difference for row in rows for cell in row.cells.values() if row.method == "erm"] == [None] * 4
    found = rows[3].cells["accuracy"]
    assert near(found.estimate, [0.71, 0.77, 0.86])
    assert found.difference
    assert near(found.difference.estimate, [0.01, 0.02, 0.06])
    assert not after_rows(compare_runs(results), [dataclasses.replace(run, after={}) for run in results])


def test_seeds_that_only_one_has_and_numbers_that_are_not_finite_are_left_out(
    make_run: Callable[..., RunResult],
) -> None:
    results = runs_of(make_run)
    results[0] = dataclasses.replace(results[0], after={})
    results[1].after["4 bits"]["accuracy"] = float("nan")
    found = after_rows(compare_runs(results), results)[3].cells["accuracy"]
    assert found.difference
    assert found.difference.by_seed == pytest.approx({2: 0.06})
    assert near(found.estimate, [0.71, 0.77, 0.86])


def test_the_terminal_and_the_page_show_them(make_run: Callable[..., RunResult], tmp_path: Path) -> None:
    results = runs_of(make_run)
    comparison = compare_runs(results)
    rows = after_rows(comparison, results)
    mean, interval = rounding.signed_interval(rows[3].cells["accuracy"].difference.estimate)  # type: ignore[union-attr]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(after_table(comparison, rows))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].split() == ["weights", "method", "accuracy", "vs", "erm", "NLL", "vs", "erm"]
    assert mean in text
    assert interval in text
    assert text.count("baseline") == 4
    write_report(results, {}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "After training</h2>" in page
    assert f"<td>{mean} {interval}</td>" in page
    write_report([dataclasses.replace(run, after={}) for run in results], {}, tmp_path / "report.html")
    assert "After training" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_old_results_have_none(make_run: Callable[..., RunResult]) -> None:
    old = json.loads(make_run("erm", 0, 0.9).to_json())
    del old["after"]
    assert RunResult.from_json(json.dumps(old)).after == {}
