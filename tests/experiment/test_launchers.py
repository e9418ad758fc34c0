"""Runs done elsewhere: the same numbers in the same order, whatever happens to the workers."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

import forked
from deltasam.errors import UserError
from deltasam.lab.compare.grid import Grid
from deltasam.lab.compare.launchers import Launcher, RunKey, RunProgress, SequentialLauncher, find_launcher, worker_pool
from deltasam.lab.compare.launchers.worker import Warned, do_apart
from deltasam.lab.compare.launchers.worker_pool import WorkerPool
from deltasam.lab.data import TextData
from deltasam.lab.data.setting import Setting
from deltasam.lab.folders.files import checkpoint_path, read_results
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import RunResult
from sabotage import Killed, NotHere, Sabotaged, short_work

METHODS = ["erm", "sam:rho=0.02,share=micro-batch"]
ELSEWHERE = ["local", "ray"]

pytestmark = pytest.mark.xdist_group("launchers")  # one cluster for all


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the workers need the tests' own modules
        ray.init(num_cpus=2, num_gpus=1, log_to_driver=False, include_dashboard=False, logging_level="CRITICAL")
    yield
    ray.shutdown()


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> Launcher:
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return find_launcher(request.param, 2, gpu=False)


@pytest.fixture(scope="module")
def grid(data: TextData, tiny_model: Path) -> Grid:
    config = TrainConfig(model=str(tiny_model), epochs=2, batch_size=8)
    return Grid(data, config, METHODS, [0, 1], [Setting(16)])


def numbers(results: list[RunResult]) -> list[str]:
    """Every number except times and memory."""
    bare = [
        dataclasses.replace(
            r, steps=[dataclasses.replace(s, seconds=0.0) for s in r.steps], seconds_per_step=0.0, peak_memory_mib=None
        )
        for r in results
    ]
    return [r.to_json() for r in bare]


@pytest.fixture(scope="module")
def in_sequence(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs leave that are done one after the other."""
    folder = tmp_path_factory.mktemp("in_sequence")
    grid.run(folder, watch=lambda progress: None)
    return folder


@pytest.mark.parametrize("launcher", ELSEWHERE, indirect=True)
def test_same_numbers_though_a_worker_is_killed(
    grid: Grid, in_sequence: Path, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_SPAWN", forked.CONTEXT)  # others see to it that a new interpreter will do
    expected = read_results(in_sequence)
    victim, marks, told = RunKey(0, "erm", Setting(16)), tmp_path / "marks", list[RunProgress]()
    marks.mkdir()
    with pytest.warns(RuntimeWarning, match=r"erm seed 0 n=16: the process at work on it died .* it is done again"):
        found = grid.run(tmp_path / "out", watch=told.append, launcher=Sabotaged(launcher, Killed(victim, 3, 1, marks)))
    assert numbers(found) == numbers(expected)
    assert numbers(read_results(tmp_path / "out")) == numbers(expected)  # the victim is the first line all the same
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["examples", "results.jsonl"]
    for table in (in_sequence / "examples").iterdir():
        assert (tmp_path / "out/examples" / table.name).read_bytes() == table.read_bytes()
    assert {s.key for s in told if s.finished} == set(grid.run_keys())
    if launcher.shares_disk:  # from the checkpoint at the end of the first epoch
        assert [s.steps for s in told if s.key == victim] == [0, 1, 2, 3, 2, 3, 4]


def test_workers_share_the_hidden_states_of_lower_layers(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a new one in place of one that was killed; nothing is left of what they share."""
    top = dataclasses.replace(grid, config=dataclasses.replace(grid.config, train_layers=1))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # workers then have as many threads as this process
    expected = top.run(tmp_path / "in sequence", watch=lambda progress: None)
    victim, marks, temporary = RunKey(0, "erm", Setting(16)), tmp_path / "marks", tmp_path / "temporary"
    marks.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    files = set[Path]()

    def watch(progress: RunProgress) -> None:
        files.update(temporary.glob("deltasam-*/*.pt"))

    with pytest.warns(RuntimeWarning, match="it is done again"):
        found = top.run(tmp_path / "out", watch=watch, launcher=Sabotaged(WorkerPool(2), Killed(victim, 3, 1, marks)))
    assert numbers(found) == numbers(expected)
    assert len(files) == 3  # evaluation rows, and training rows of two seeds
    assert not list(temporary.glob("deltasam-*"))


@pytest.mark.parametrize("launcher", ELSEWHERE, indirect=True)
def test_a_run_that_always_kills_its_worker(launcher: Launcher, tmp_path: Path) -> None:
    deadly = Sabotaged(launcher, Killed(RunKey(1, "sam:rho=0.02,share=micro-batch"), 1, 99, tmp_path))
    keys = [RunKey(0, "erm"), RunKey(1, "sam:rho=0.02,share=micro-batch")]
    with (
        pytest.warns(RuntimeWarning, match="sam seed 1"),
        pytest.raises(UserError, match=r"^sam seed 1: the process at work on it died 3 times \((SIGKILL|Worker)"),
    ):
        list(deadly.launch(short_work, keys, lambda progress: None))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("refuses", UserError, "the file is missing; give another"),
        ("fails", ZeroDivisionError, "a defect"),
        ("fails badly", RuntimeError, "UnpicklableError: no way back"),
    ],
)
def test_errors_as_they_come_back(method: str, kind: type[Exception], message: str) -> None:
    sent = ForkingPickler.dumps(do_apart(short_work, RunKey(0, method), lambda progress: None, threads=1))
    with pytest.raises(kind, match=message) as caught:
        ForkingPickler.loads(sent).unpack(set())
    assert type(caught.value) is kind
    assert "in short_work" in str(caught.value.__cause__)


@pytest.mark.parametrize("launcher", ELSEWHERE, indirect=True)
def test_an_error_stops_the_comparison(launcher: Launcher) -> None:
    keys: list[RunKey] = [RunKey(0, "erm"), RunKey(0, "refuses"), *[RunKey(seed, "erm") for seed in range(1, 99999)]]
    done = []
    with pytest.raises(UserError, match=r"^the file is missing; give another$"):
        done.extend(launcher.launch(short_work, keys, lambda progress: None))
    assert len(done) < 9999


def test_what_was_finished_before_an_error_is_kept(grid: Grid, tmp_path: Path) -> None:
    def fail(progress: RunProgress) -> None:
        if progress.key == RunKey(1, "erm", Setting(16)):
            raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        grid.run(tmp_path, watch=lambda progress: None, launcher=Sabotaged(SequentialLauncher(), fail))
    assert [(r.seed, r.method) for r in read_results(tmp_path)] == [key[:2] for key in grid.run_keys()][:2]


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_warnings_come_back_and_are_given_once() -> None:
    seen: set[Warned] = set()
    with warnings.catch_warnings(record=True) as given:
        for seed in range(3):
            do_apart(short_work, RunKey(seed, "warns"), lambda progress: None, threads=1).unpack(seen)
    assert [(str(w.message), Path(w.filename).name) for w in given] == [("mind the step", "sabotage.py")]


def test_workers_are_used_again_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    keys = [RunKey(seed, "erm") for seed in range(6)]
    done = list(WorkerPool(2).launch(short_work, keys, lambda progress: None))
    assert sorted(r.seed for r in done) == list(range(6))
    assert {r.metrics["threads"] for r in done} == {2}
    workers = {r.metrics["pid"] for r in done}
    assert 1 <= len(workers) <= 2
    assert os.getpid() not in workers


def test_threads_that_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # what PyTorch makes of it when it is loaded
    [done] = WorkerPool(2).launch(short_work, [RunKey(0, "erm")], lambda progress: None)
    assert done.metrics["threads"] == 3


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_of_the_cluster_for_each_run(cluster: None, gpu: bool) -> None:
    launcher = find_launcher("ray", None, gpu=gpu)
    [done] = launcher.launch(short_work, [RunKey(0, "erm")], lambda progress: None)
    assert done.metrics["gpu"] == (0 if gpu else -1)


def test_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")

    def init(**options: object) -> None:
        raise ConnectionError("no running instance")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    launcher = find_launcher("ray", None, gpu=False)
    with pytest.raises(UserError, match=r"cannot reach the Ray cluster: no running instance; check RAY_ADDRESS"):
        list(launcher.launch(short_work, [RunKey(0, "erm")], lambda progress: None))


def test_a_machine_that_cannot_do_the_work(cluster: None) -> None:
    launcher = find_launcher("ray", None, gpu=False)
    with pytest.raises(UserError, match=r"erm seed 0 could not begin .*No module named 'deltasam'.*install the same"):
        list(launcher.launch(NotHere(), [RunKey(0, "erm")], lambda progress: None))


def test_names_of_checkpoints(tmp_path: Path) -> None:
    keys: list[RunKey] = [
        RunKey(seed, method, setting)
        for setting in (None, Setting(8), Setting(16), Setting(16, 0.2), Setting(16, 0.25))
        for seed in (0, 1, 10)
        for method in ("sam:rho=0.1", "sam:rho=0.10", "SAM:rho=0.1", "a/b:x=../../c", "a:b:x=1", "a\\b", "x" * 300)
    ]
    paths = [checkpoint_path(tmp_path, key) for key in keys]
    assert len({str(p).lower() for p in paths}) == len(keys)  # also where case does not count
    assert {p.parent for p in paths} == {tmp_path}
    for path in paths:
        path.touch()
        assert len(path.name) < 100
        assert set(path.name.replace("checkpoint", "")) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
        )


def test_a_finished_run_leaves_no_checkpoint(grid: Grid, tmp_path: Path) -> None:
    small = dataclasses.replace(grid, methods=["erm"], seeds=[0])
    small.run(tmp_path, watch=lambda progress: None)
    checkpoint_path(
        tmp_path, RunKey(0, "erm", Setting(16))
    ).touch()  # stopped between the result and the end of the checkpoint
    small.run(tmp_path, watch=lambda progress: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples", "results.jsonl"]


def test_unknown_launcher() -> None:
    with pytest.raises(UserError, match="--launcher slurm: must be local or ray"):
        find_launcher("slurm", 2, gpu=False)


@pytest.mark.parametrize(("workers", "kind"), [(None, SequentialLauncher), (1, SequentialLauncher), (2, WorkerPool)])
def test_no_process_for_one_worker(workers: int | None, kind: type) -> None:
    assert isinstance(find_launcher("local", workers, gpu=False), kind)
