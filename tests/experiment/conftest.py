"""Data and options of a short real run, synthetic runs that look like real ones, and a browser to look at pages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from deltasam.diagnostics.examples.detection import Detection, detection
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.data import TextData, load_data
from deltasam.lab.data.setting import Setting
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import EvaluationRecord, ExampleRecord, RunResult, StepRecord

Factory = Callable[..., list[RunResult]]

EFFECTS = {"erm": 0.0, "sam": 0.012, "delta_sam": 0.010, "asam": -0.03}
COSTS = {"erm": 1.0, "sam": 1.97, "delta_sam": 1.08, "asam": 2.05}


@pytest.fixture(scope="session")
def data(reviews: Path) -> TextData:
    return load_data(reviews, text="review", label="verdict")


@pytest.fixture(scope="session")
def config(tiny_model: Path) -> TrainConfig:
    return TrainConfig(model=str(tiny_model), epochs=2, batch_size=6, learning_rate=3e-3)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunResult]:
    return _run


@pytest.fixture(scope="session")
def make_results() -> Factory:
    """A factory: methods and seeds in, runs in paired design out."""

    def make(
        methods: Sequence[str], seeds: int = 3, settings: Sequence[Setting | None] = (None,), **options: object
    ) -> list[RunResult]:
        runs = [_training(m, seed, **options) for m in methods for seed in range(seeds)]  # type: ignore[arg-type]
        return [dataclasses.replace(run, setting=setting) for setting in settings for run in runs]

    return make


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[RunGroup]]:
    return _rows


@pytest.fixture
def open_page(browser):
    """Opens a file; returns the page with its charts drawn, and what went wrong meanwhile."""
    pages = []

    def open_(path: Path, width: int, scheme: str):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(8000)
        pages.append(page)
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda r: troubles.append(f"request: {r.url}") if r.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.wait_for_function("[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg'))")
        return page, troubles

    yield open_
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def violations():
    """What axe finds wrong on a page: rule and first element. Contrast is slow to check; ``contrast`` is that alone."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    rules = {
        "all": {},
        "contrast": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
        "structure": {"rules": {"color-contrast": {"enabled": False}}},
    }

    def find(page, what: str = "all") -> list[str]:
        found = axe.run(page, options={"resultTypes": ["violations"], **rules[what]}).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html']} {v['nodes'][0]['failureSummary']}" for v in found]

    return find


def _run(method: str, seed: int, value: float, **other: object) -> RunResult:
    """A run of which only the numbers a test is about are given."""
    metrics = {"accuracy": value, "loss": 0.4, "ece": 0.05}
    fields = {"metric": "accuracy", "metrics": metrics, "seconds_per_step": 0.1, "peak_memory_mib": 512.0}
    return RunResult(method=method, seed=seed, **{**fields, **other})  # type: ignore[arg-type]


def _rows(
    tasks: int | Sequence[str] = 10,
    methods: int | Sequence[str] = 10,
    seeds: int = 5,
    effects: Mapping[str, float] | None = None,
    rng: int = 0,
    metrics: tuple[str, ...] = ("accuracy",),
) -> list[RunGroup]:
    """A table in paired design: all methods share the seed's noise, and ``effects`` are added to some."""
    noise = np.random.default_rng(rng)
    labels = ["erm", *(f"m{i}" for i in range(1, methods))] if isinstance(methods, int) else list(methods)
    names = [f"task {i}" for i in range(tasks)] if isinstance(tasks, int) else list(tasks)
    rows = []
    for t, name in enumerate(names):
        shared = noise.uniform(0.5, 0.9) + noise.normal(0, 0.01, seeds)
        values = shared + noise.normal(0, 0.007, (len(labels), seeds))
        specs = {label if label == "erm" else f"{label}:rho=0.0{t + 1}": label for label in labels}
        results = [
            _run(spec, s, 0.0, seconds_per_step=0.1 * (1 + i),
                 metrics=dict.fromkeys(metrics, float(values[i, s]) + (effects or {}).get(label, 0.0)) | {"loss": 0.4})
            for s in range(seeds) for i, (spec, label) in enumerate(specs.items())
        ]  # fmt: skip
        rows.append(RunGroup(name, metrics, results, specs))
    return rows


def _training(
    method: str,
    seed: int,
    steps: int = 240,
    weighted: Sequence[str] = ("delta_sam",),
    diverged: Sequence[tuple[str, int]] = (),
    regression: bool = False,
    noise: float = 0.0,
    texts: Sequence[str] = ("a gripping film", "dull and overlong", "so-so"),
    labels: Sequence[str] = ("negative", "positive"),
) -> RunResult:
    """One whole run: noise of the seed is shared by all methods, as in a paired design."""
    shared, name = np.random.default_rng(seed), method.split(":")[0]
    own = np.random.default_rng([seed, *method.encode()])
    lost = (method, seed) in diverged
    best = 0.88 + EFFECTS.get(name, 0.0) + shared.normal(0, 0.006) + own.normal(0, 0.003)
    batch_noise = shared.normal(0, 0.08, steps)
    lengths = shared.uniform(0.6, 1.4, steps)
    losses = 0.15 + 0.55 * np.exp(-np.arange(steps) / (steps / 5)) + batch_noise**2 + own.normal(0, 0.02, steps)
    losses = np.where(lost & (np.arange(steps) > steps * 0.6), np.nan, np.abs(losses))
    gaps = 0 if name == "erm" else 0.04 + 0.06 * np.exp(-np.arange(steps) / (steps / 3)) + own.normal(0, 0.01, steps)
    seconds = 0.11 * COSTS.get(name, 1.5) * lengths * own.uniform(0.97, 1.03, steps)
    seconds[0] *= 20
    metric = "spearman" if regression else "accuracy"
    records = [
        StepRecord(i + 1, (i + 1) / steps * 3, float(losses[i]), float((losses + gaps)[i]), 0.05, 1.0,
                   float(seconds[i]), 2e-5 * (1 - i / steps))
        for i in range(steps)
    ]  # fmt: skip
    evaluations = [
        _evaluation(metric, step, steps, best, lost, regression) for step in range(steps // 8, steps + 1, steps // 8)
    ]
    weights = own.gamma(4.0, 0.25, 800) if name in weighted else np.array([])
    examples = _examples(own, weights, shared.random(100) < noise if noise else None, texts, labels)
    cost = COSTS.get(name, 1.5)
    return RunResult(
        method, seed, metric, evaluations[-1].metrics, float(np.median(seconds[1:])), 900.0 * cost,
        records, evaluations, examples, [float(w) for w in weights], detection=_detection(examples) if noise else {},
    )  # fmt: skip


def _examples(
    own: np.random.Generator,
    weights: np.ndarray,
    flipped: np.ndarray | None,
    texts: Sequence[str],
    labels: Sequence[str],
) -> list[ExampleRecord]:
    """A hundred examples; wrong labels have larger losses and gradients, as far as noise lets one see it."""
    wrong = np.zeros(100, bool) if flipped is None else flipped
    losses = own.gamma(1.0, 0.4, 100) + 0.8 * wrong
    norms = losses * own.uniform(0.5, 2, 100)
    found = []
    for i in range(100):
        label, other = labels[i % len(labels)], labels[(i + 1) % len(labels)]
        found.append(
            ExampleRecord(
                i, f"{texts[i % len(texts)]} ({i})", label, float(weights[i]) if weights.size else None,
                float(norms[i]), float(losses[i]), 3, label if losses[i] < 0.7 else other, bool(losses[i] < 0.7),
                None if flipped is None else other if wrong[i] else label,
            )
        )  # fmt: skip
    return found


def _detection(examples: Sequence[ExampleRecord]) -> dict[str, Detection]:
    numbers = {by: [getattr(e, by) for e in examples] for by in ("weight", "norm", "loss")}
    flipped = [bool(e.flipped) for e in examples]
    return {by: detection(values, flipped) for by, values in numbers.items() if None not in values}


def _evaluation(metric: str, step: int, steps: int, best: float, lost: bool, regression: bool) -> EvaluationRecord:
    left = math.exp(-4 * step / steps)
    metrics = {metric: best - 0.35 * left, "loss": 1.19 - best + 0.4 * left + 0.06 * step / steps}
    if not regression:
        metrics["ece"] = 0.91 - best + 0.04 * step / steps
    if lost and step > steps * 0.6:
        metrics |= dict.fromkeys(metrics, math.nan)
    return EvaluationRecord(step, step / steps * 3, metrics)
