"""All runs of a comparison: kept one by one, continued where they stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from deltasam.core.files import write_atomically
from deltasam.errors import UserError
from deltasam.lab.compare.grid import Grid
from deltasam.lab.compare.launchers import RunKey, RunProgress
from deltasam.lab.data import TextData
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.files import read_results
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import ExampleRecord, RunResult

METHODS = ["erm", "delta_sam:rho=0.05,weights=slopes,sigma=0.01,share=micro-batch"]


@pytest.fixture(scope="module")
def grid(data: TextData, tiny_model: Path) -> Grid:
    config = TrainConfig(model=str(tiny_model), epochs=2, batch_size=8)
    return Grid(data, config, METHODS, [0, 1], [Setting(16)])


def numbers(results: list[RunResult]) -> list[str]:
    return [
        repr(
            dataclasses.replace(
                r,
                steps=[dataclasses.replace(s, seconds=0.0) for s in r.steps],
                seconds_per_step=0.0,
                peak_memory_mib=None,
            )
        )
        for r in results
    ]


def run(grid: Grid, folder: Path, stop_after: int | None = None) -> tuple[list[RunResult], list[tuple[str, int]]]:
    begun: dict[RunKey, int] = {}
    steps = 0

    def watch(progress: RunProgress) -> None:
        nonlocal steps
        if begun.setdefault(progress.key, progress.steps) < progress.steps:
            steps += 1
        if steps == stop_after:
            raise KeyboardInterrupt

    results = grid.run(folder, watch=watch)
    return results, [(method, done) for (_, method, _), done in begun.items()]


def test_interrupted_anywhere_equals_unbroken(grid: Grid, tmp_path: Path) -> None:
    expected, begun = run(grid, tmp_path / "whole")
    assert [(r.method, r.seed) for r in expected] == [(m, s) for s in (0, 1) for m in METHODS]
    assert [name for name, _ in begun] == METHODS * 2
    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path / "broken", stop_after=7)  # the second run, after its first epoch
    assert len(read_results(tmp_path / "broken")) == 1
    found, begun = run(grid, tmp_path / "broken")
    assert begun[0] == (METHODS[1], 2)
    assert numbers(found) == numbers(expected)
    assert numbers(read_results(tmp_path / "broken")) == numbers(expected)
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == ["examples", "results.jsonl"]
    for table in sorted((tmp_path / "whole/examples").iterdir()):
        assert (tmp_path / "broken/examples" / table.name).read_bytes() == table.read_bytes()


def test_every_setting_is_a_comparison_of_its_own(grid: Grid, tmp_path: Path) -> None:
    settings = [Setting(16), Setting(16, 0.25), Setting(8)]
    wide = dataclasses.replace(grid, settings=settings, seeds=[0])
    expected, begun = run(wide, tmp_path / "whole")
    assert [(r.setting, r.method) for r in expected] == [(s, m) for s in settings for m in METHODS]
    assert [steps for _, steps in begun] == [0] * 6
    assert [len(r.steps) for r in expected] == [4, 4, 4, 4, 2, 2]
    for position, setting in enumerate(settings):  # alone it is the same
        alone, _ = run(dataclasses.replace(wide, settings=[setting]), tmp_path / f"alone-{position}")
        assert numbers(alone) == numbers(expected[2 * position : 2 * position + 2])
    with pytest.raises(KeyboardInterrupt):
        run(wide, tmp_path / "broken", stop_after=15)  # the fourth run, after its first epoch
    assert len(read_results(tmp_path / "broken")) == 3
    found, begun = run(wide, tmp_path / "broken")
    assert begun == [(METHODS[1], 2), (METHODS[0], 0), (METHODS[1], 0)]
    assert numbers(found) == numbers(expected) == numbers(read_results(tmp_path / "broken"))


def test_noise_is_in_the_labels_that_are_shown(grid: Grid, tmp_path: Path) -> None:
    noisy = dataclasses.replace(grid, methods=METHODS[1:], seeds=[3], settings=[Setting(16, 0.25)])
    (result,), _ = run(noisy, tmp_path)
    clean = {row["row"]: grid.data.label_names[row["label"]] for row in grid.data.train}
    assert sum(clean[e.row] != e.label for e in result.examples) == 4


def test_results_from_before_there_were_settings(grid: Grid, tmp_path: Path) -> None:
    small = dataclasses.replace(grid, seeds=[0])
    expected, _ = run(small, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for line in lines:
        del line["setting"], line["reported"]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    assert read_results(tmp_path)[0].setting is None
    found, begun = run(small, tmp_path)
    assert [method for method, _ in begun] == METHODS[1:]
    assert [r.setting for r in found] == [Setting(16)] * 2
    assert numbers(found)[1:] == numbers(expected)[1:]


def test_what_no_setting_can_have_is_said_first(grid: Grid) -> None:
    with pytest.raises(UserError, match="--train-size 5000 is impossible"):
        dataclasses.replace(grid, settings=[Setting(16), Setting(5000)]).check()
    with pytest.raises(UserError, match=r"--label-noise 0.01 of 16 training rows changes 0"):
        dataclasses.replace(grid, settings=[Setting(16), Setting(16, 0.01)]).check()
    with pytest.raises(UserError, match="--label-noise 1: give a share"):
        Setting(16, 1)


def test_nothing_is_done_twice(grid: Grid, tmp_path: Path) -> None:
    small = dataclasses.replace(grid, methods=["erm"], seeds=[0])
    first, _ = run(small, tmp_path)
    second, begun = run(small, tmp_path)
    assert begun == []
    assert numbers(first) == numbers(second)


def test_each_seed_has_rows_of_its_own_shared_by_methods(grid: Grid, tmp_path: Path) -> None:
    small = dataclasses.replace(grid, methods=METHODS[1:])
    results, _ = run(small, tmp_path)
    rows = [{e.row for e in r.examples} for r in results]
    assert len(rows[0]) == len(rows[1]) == 16
    assert rows[0] != rows[1]


def test_any_text_survives_the_file(tmp_path: Path) -> None:
    nasty = ExampleRecord(row=0, text="line\u2028separator\x85next\nnew </script>", label="é", weight=1.0)
    result = RunResult("erm", 0, "accuracy", {"accuracy": 1.0}, 0.1, None, examples=[nasty])
    write_atomically(tmp_path / "results.jsonl", result.to_json() + "\n" + result.to_json() + "\n")
    assert read_results(tmp_path) == [result, result]


def test_damaged_results(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"method": "erm"', encoding="utf-8")
    with pytest.raises(UserError, match="not a saved run"):
        read_results(tmp_path)
