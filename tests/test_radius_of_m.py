"""The study of the radius and m: its step is the library's, its statistics find what is there, its numbers are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
import radius_of_m as study

ROOT = Path(__file__).parents[1]
RECORD: dict[str, Any] = json.loads((ROOT / "benchmarks/results/radius_of_m.json").read_text(encoding="utf-8"))
WIDTH, BATCH = 16, 32


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    rows = study.rows(3, 0.4)
    return rows.x[:BATCH].double(), rows.given[:BATCH]


def network(weights: study.Weights, run: int) -> nn.Module:
    """PyTorch's, with the weights of one of the runs."""
    model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, study.CLASSES)).double()
    for p, weight in zip(model.parameters(), weights, strict=True):
        p.data = weight[run].T.reshape(p.shape).clone()
    return model


@pytest.mark.parametrize("memorised", [False, True], ids=["at the start", "small gradients"])
def test_the_gradients_are_the_librarys(batch: tuple[Tensor, Tensor], memorised: bool) -> None:
    """Of runs with another m and another radius, side by side; gradients of all sizes."""
    x, labels = batch
    ms, rhos = [1, 2, 4, 8, 16, 32, 32, 1], [0.3, 0.1, 0.2, 0.3, 0.5, 0.3, 0.0, 0.0]
    weights = study.start(3, len(ms), 64, WIDTH)
    first, first_bias, second, second_bias = (w.double() * (4 if memorised else 1) for w in weights)
    weights = (first, first_bias, second, second_bias)
    if memorised:
        labels = network(weights, 0)(x).argmax(1)
    y = F.one_hot(labels, study.CLASSES).double()
    found, norms = study.gradients(
        weights, x, y, study.together(ms, BATCH).double(), torch.tensor(rhos, dtype=torch.float64)
    )

    specs = [f"per_instance_sam:rho={rho},m={m}" for m, rho in zip(ms, rhos, strict=True)]
    for run, spec in [*enumerate(specs), (5, "sam:rho=0.3"), (6, "erm"), (7, "erm")]:
        model = network(weights, run)
        step = deltasam.make_method(spec, model).backward(
            lambda model=model: F.cross_entropy(model(x), labels, reduction="none")
        )
        for p, gradient in zip(model.parameters(), found, strict=True):
            torch.testing.assert_close(gradient[run].T.reshape(p.shape), p.grad, rtol=1e-9, atol=1e-12)
        if spec.startswith("per_instance_sam"):
            torch.testing.assert_close(norms[run].mean() / ms[run], step.metrics["ascent_norm"])


def test_runs_side_by_side_are_runs_alone() -> None:
    setting = study.Setting(0.4, epochs=3, width=WIDTH)
    ms, rhos = [1, 8, 32, 8], [0.1, 0.2, 0.4, 0.0]
    together = study.train(setting, 5, ms, rhos)
    for run, (m, rho) in enumerate(zip(ms, rhos, strict=True)):
        alone = study.train(setting, 5, [m], [rho])
        for which in ("selection", "test"):
            one, many = getattr(alone, which)[:, 0], getattr(together, which)[:, run]
            assert (one - many).abs().max() <= 2  # rounding may tip a row
        torch.testing.assert_close(alone.norms[:, 0], together.norms[:, run], rtol=1e-3, atol=0)


def test_labels_are_wrong_as_often_as_asked() -> None:
    clean, noisy = study.rows(1, 0.0), study.rows(1, 0.4)
    assert len(clean.x) == study.DIGITS
    assert torch.equal(clean.given, clean.right)
    assert torch.equal(clean.x, noisy.x)
    for part in (slice(study.TRAINING), slice(study.TRAINING, study.TRAINING + study.SELECTION)):
        assert float((noisy.given != noisy.right)[part].float().mean()) == pytest.approx(0.4, abs=0.06)


def invented(slope: float, noise: float) -> dict[str, Any]:
    """A record in which the radius for m is known to be best at 0.1 * m^slope, by both kinds of rows."""
    generator = np.random.default_rng(1)
    setting = study.Setting(0.0)
    best = np.log(0.1) + slope * np.log(setting.ms)[:, None]
    curve = 300 - 20 * (np.log(study.RADII)[None] - best) ** 2
    seeds = {}
    for seed in range(20):
        hits = [*(curve + noise * generator.normal(size=curve.shape)).flatten().tolist(), *[0.0] * len(setting.ms)]
        by = {"selection": hits, "test": hits}
        norms = np.exp(noise * generator.normal()) / np.sqrt(setting.ms)
        seeds[str(seed)] = {**dict.fromkeys(study.PROTOCOLS, by), "norms": norms.tolist()}
    return {"wrong": 0.0, **vars(setting), "radii": list(study.RADII), "choosing": seeds}


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.5])
def test_a_known_rule_is_found(slope: float) -> None:
    exact = study.rule(invented(slope, 0.0), study.STOPPED)
    assert exact.slope.value == pytest.approx(slope, abs=0.01)
    assert [r.value for r in exact.radii] == pytest.approx([0.1 * m**slope for m in (1, 2, 4, 8, 16, 32)], rel=0.02)
    assert exact.ratio.value == pytest.approx(32**-slope, rel=0.02)
    assert not exact.at_an_edge
    noisy = study.rule(invented(slope, 10.0), study.STOPPED)
    assert noisy.slope.low < slope < noisy.slope.high
    assert 0.01 < noisy.slope.high - noisy.slope.low < 0.3


def test_the_norms_of_what_has_nothing_in_common_give_one_half() -> None:
    found = study.slope_of_norms(invented(0.3, 1.0))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_best_radius_at_an_edge_is_marked() -> None:
    assert study.rule(invented(1.2, 0.0), study.STOPPED).at_an_edge


def test_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = study.Setting(0.4, epochs=2, batch=4, width=4)
    monkeypatch.setattr(study, "SETTINGS", {"tiny": tiny, "another": study.Setting(0.0, epochs=2, batch=4, width=4)})
    monkeypatch.setenv("COLUMNS", "200")
    path, plot = tmp_path / "record.json", tmp_path / "plot.svg"
    options = ["--settings", "tiny;another", "--choosing", "2", "--judging", "3", "--radii", "0.1,0.2,0.4"]
    printed = []
    for arguments in ([*options, "--record", str(path)], ["--show", str(path), "--plot", str(plot)]):
        monkeypatch.setattr(sys, "argv", ["radius_of_m.py", *arguments])
        study.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    record = json.loads(path.read_text())
    assert list(record["settings"]) == ["tiny", "another"]
    found = record["settings"]["tiny"]
    assert study.ms_of(found) == [1, 2, 4]
    assert study.curves_of(found, study.STOPPED).shape == (2, 3, 3)
    assert list(found["judging"]) == [str(study.FIRST_JUDGE + k) for k in range(3)]
    assert not set(found["judging"]) & set(found["choosing"])
    assert "<svg" in plot.read_text()


RIGHT, WRONG = RECORD["settings"]["right labels"], RECORD["settings"]["40 % wrong labels"]


def told() -> str:
    """The section about it, in one line."""
    page = (ROOT / "docs/how-to/choose_rho.md").read_text(encoding="utf-8")
    return " ".join(page.split("## m and the radius")[1].split("\n## ")[0].split())


def test_what_is_told_of_radii_is_what_was_found() -> None:
    text = told()
    wrong, right = (study.rule(setting, study.STOPPED) for setting in (WRONG, RIGHT))
    assert f"{wrong.slope:.2f} with 40 % wrong labels and {right.slope:.2f} with right ones" in text
    assert f"{wrong.ratio:.2f} and {right.ratio:.2f} times SAM's, where the rule says {32**-0.5:.2f}" in text
    norms = [f"{study.slope_of_norms(setting):.2f}" for setting in (WRONG, RIGHT)]
    assert f"slopes of {norms[0]} and {norms[1]}" in text
    assert wrong.slope.low < 0.5 < wrong.slope.high
    assert right.slope.high < 0.5  # too steep, by every way to look at it
    for setting, protocol in ((RIGHT, study.STOPPED), (RIGHT, study.TO_THE_END)):
        others = [study.rule(setting, protocol, by, smooth) for by in ("selection", "test") for smooth in (True, False)]
        assert all(rule.slope.high < 0.5 and not rule.at_an_edge for rule in others)


def test_what_is_told_of_accuracies_is_what_was_found() -> None:
    text = told()
    right, wrong = (study.difference(setting, 1, 32, study.STOPPED) for setting in (RIGHT, WRONG))
    assert f"{-right.value:.2f} [{-right.high:.2f}, {-right.low:.2f}] points worse with right labels" in text
    assert f"no different with wrong ones ({wrong:+.2f})" in text
    assert right.high < 0
    assert wrong.low < 0 < wrong.high
    over_plain = [study.difference(s, m, study.PLAIN, study.STOPPED) for s in (RIGHT, WRONG) for m in (1, 32)]
    assert all(d.low > 0 for d in over_plain)
    values = [d.value for d in over_plain]
    assert f"better than plain training, by {min(values):.1f} to {max(values):.1f} points" in text


def test_what_is_told_of_training_to_the_end_is_what_was_found() -> None:
    means = 100 * study.curves_of(WRONG, study.TO_THE_END, "test").mean(0) / (1797 - 600 - 400)
    best = WRONG["radii"].index(study.best_radii(WRONG, study.TO_THE_END)[0])
    first, below = (f"{means[0, k]:.1f} %" for k in (best, best - 1))
    radii = [f"{WRONG['radii'][k]:.2f}" for k in (best, best - 1)]
    text = told()
    assert f"At {radii[0]}, m = 1 classifies {first} of the clean rows correctly, at {radii[1]} {below}" in text
    assert f"SAM, at the best of its radii, {means[-1].max():.1f} %" in text
    judged = [study.accuracies(WRONG, m, study.TO_THE_END).mean() for m in (1, 2, 4, 8, 16)]
    assert max(judged) - min(judged) <= 2


def test_the_record_is_whole() -> None:
    for setting in (RIGHT, WRONG):
        wanted = vars(study.SETTINGS["right labels" if setting is RIGHT else "40 % wrong labels"])
        assert {key: setting[key] for key in wanted} == wanted
        count = len(study.ms_of(setting))
        for seed in setting["choosing"].values():
            assert len(seed["epoch"]) == count * (len(setting["radii"]) + 1)
            assert len(seed["norms"]) == count
        for seed in setting["judging"].values():
            assert len(seed["epoch"]) == 1 + 2 * count
        plain = [seed["fit"][-1] for seed in setting["choosing"].values()]
        assert sum(plain) / len(plain) > 0.98  # it memorises
