"""How the best radius depends on m, the number of examples that share a perturbation, and whether m = 1 is better.

    OMP_NUM_THREADS=1 python benchmarks/radius_of_m.py --record benchmarks/results/radius_of_m.json
    python benchmarks/radius_of_m.py --show benchmarks/results/radius_of_m.json --plot docs/assets/radius_of_m.svg
    python benchmarks/radius_of_m.py --settings "right labels" --choosing 2 --judging 2

A network with one hidden layer learns scikit-learn's digits: 600 rows to train on, 400 that choose epoch and radius and
whose labels are wrong as often as those of the 600, the rest, with right labels, as a test. Two protocols: stopped
early (the best epoch by the 400 rows, and the radius that is best there) and trained to the end (the last epoch, and
the radius that is best there). A seed draws the split, the wrong labels, the start and the batches. Some seeds choose
the radius for each m; others judge at these radii, and all differences are between runs of the same seed.

All runs of a seed go side by side, a step is written out for this network, and nothing of deltasam is used; a test
holds its gradients to those of ``per_instance_sam`` and ``sam``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import t as student
from torch import Tensor, nn

DIGITS, TRAINING, SELECTION, CLASSES = 1797, 600, 400, 10
RADII = tuple(round(0.01 * 2 ** (k / 2), 4) for k in range(17))
FIRST_JUDGE = 10_000
"""Seeds from here on judge, those from 0 on choose."""

STOPPED, TO_THE_END = "stopped early", "trained to the end"
PROTOCOLS = (STOPPED, TO_THE_END)
RESAMPLES = 4000

Array = NDArray[np.float64]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of each layer, runs first: weights [runs, inputs, outputs] and biases [runs, 1, outputs]."""


@dataclass(frozen=True)
class Setting:
    """What is learned, and how.

    Attributes:
        wrong: Share of wrong labels.
        learning_rate: Of plain gradient descent, without a schedule.
        epochs: Enough of them that plain training fits its labels.
        batch: The largest m.
        width: Of the hidden layer.
    """

    wrong: float
    learning_rate: float = 0.3
    epochs: int = 60
    batch: int = 32
    width: int = 64

    @property
    def ms(self) -> list[int]:
        """Powers of two up to the batch."""
        return [2**k for k in range(self.batch.bit_length())]


SETTINGS = {
    "right labels": Setting(0.0),
    "40 % wrong labels": Setting(0.4),
}


@dataclass(frozen=True)
class Rows:
    """The digits in an order of their own: those to train on, those that choose, the test.

    Attributes:
        x: Pixels [n, 64].
        right: Labels [n].
        given: The same, some of them others.
    """

    x: Tensor
    right: Tensor
    given: Tensor


def rows(seed: int, wrong: float) -> Rows:
    """All rows of the data set, as a seed orders and spoils them."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    x, right = torch.from_numpy(pixels).float()[order], torch.from_numpy(labels).long()[order]
    x = (x - x[:TRAINING].mean(0)) / x[:TRAINING].std()
    flipped = torch.rand(len(x), generator=generator) < wrong
    others = (right + torch.randint(1, CLASSES, right.shape, generator=generator)) % CLASSES
    return Rows(x, right, torch.where(flipped, others, right))


def start(seed: int, runs: int, inputs: int, width: int) -> Weights:
    """PyTorch's own, the same for all runs."""
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, width), nn.Linear(width, CLASSES)
    first, second = ([layer.weight.T, layer.bias[None]] for layer in layers)
    a, b, c, d = (tensor.detach().expand(runs, *tensor.shape).clone() for tensor in (*first, *second))
    return a, b, c, d


def together(ms: Sequence[int], batch: int) -> Tensor:
    """1 where two examples of a batch share a perturbation, else 0 [runs, batch, batch]."""
    group = torch.arange(batch) // torch.tensor(ms)[:, None]
    return (group[:, :, None] == group[:, None, :]).float()


def gradients(weights: Weights, x: Tensor, y: Tensor, same: Tensor, rho: Tensor) -> tuple[Weights, Tensor]:
    """The gradients of m-sharpness, of all runs at once.

    A group's gradient is a sum of outer products, so that neither it nor its weights need be formed: what it adds to
    an example's outputs, ``x_j (rho g / |g|)``, is made of products of examples with examples of its group.

    Args:
        weights: Of each run.
        x: The batch, the same in all runs [n, inputs].
        y: Its labels, one of CLASSES being 1 [n, CLASSES].
        same: Who shares a perturbation [runs, n, n].
        rho: Radius of each run [runs].

    Returns:
        The gradients, and for each example the norm of the gradient of its group's summed loss [runs, n].
    """
    first, first_bias, second, second_bias = weights
    hidden = x @ first + first_bias
    a = hidden.relu()
    d2 = (a @ second + second_bias).softmax(-1) - y
    d1 = d2 @ second.mT * (hidden > 0)
    inner = same * (x @ x.T + 1)
    squares = (d1 @ d1.mT * inner + d2 @ d2.mT * same * (a @ a.mT + 1)).sum(-1, keepdim=True)
    norms = (same @ squares).clamp(min=0).sqrt()
    step = torch.where(norms > 0, rho[:, None, None] / norms, 0.0)
    moved = hidden + step * (inner @ d1)
    b = moved.relu()
    logits = b @ second + second_bias + step * ((same * (b @ a.mT + 1)) @ d2)
    e2 = (logits.softmax(-1) - y) / len(x)
    e1 = (e2 @ second.mT + step * ((same * (e2 @ d2.mT)) @ a)) * (moved > 0)
    return (x.T @ e1, e1.sum(-2, keepdim=True), b.mT @ e2, e2.sum(-2, keepdim=True)), norms[..., 0]


@dataclass(frozen=True)
class Curves:
    """What runs of one seed are like after every epoch.

    Attributes:
        selection: How many of the rows that choose are as labelled [epochs, runs].
        test: How many test rows are right [epochs, runs].
        fit: Share of the training labels that is fitted at the end [runs].
        norms: Mean norm of a group's gradient in each epoch, of its mean loss [epochs, runs].
    """

    selection: Tensor
    test: Tensor
    fit: Tensor
    norms: Tensor


def train(setting: Setting, seed: int, ms: Sequence[int], rhos: Sequence[float]) -> Curves:
    """Runs that differ in m and radius, side by side."""
    data = rows(seed, setting.wrong)
    weights = start(seed, len(ms), data.x.shape[1], setting.width)
    same, rho, y = together(ms, setting.batch), torch.tensor(rhos), F.one_hot(data.given, CLASSES).float()
    optimizer = torch.optim.SGD(weights, lr=setting.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    selection, test, norms = [], [], []
    for _ in range(setting.epochs):
        sizes = []
        for batch in torch.randperm(TRAINING, generator=generator).split(setting.batch):
            if len(batch) == setting.batch:
                found, size = gradients(weights, data.x[batch], y[batch], same, rho)
                for weight, gradient in zip(weights, found, strict=True):
                    weight.grad = gradient
                optimizer.step()
                sizes.append(size.mean(1))
        guess = guesses(weights, data.x[TRAINING:])
        selection.append((guess == data.given[TRAINING:])[:, :SELECTION].sum(1))
        test.append((guess == data.right[TRAINING:])[:, SELECTION:].sum(1))
        norms.append(torch.stack(sizes).mean(0) / torch.tensor(ms))
    fit = (guesses(weights, data.x[:TRAINING]) == data.given[:TRAINING]).float().mean(1)
    return Curves(torch.stack(selection), torch.stack(test), fit, torch.stack(norms))


def guesses(weights: Weights, x: Tensor) -> Tensor:
    """The class of each row in each run [runs, n]."""
    first, first_bias, second, second_bias = weights
    parts = [((part @ first + first_bias).relu() @ second + second_bias).argmax(-1) for part in x.split(300)]
    return torch.cat(parts, 1)


def at_protocols(curves: Curves) -> dict[str, Any]:
    """Rows that choose and test rows, at the epoch of each protocol."""
    runs = torch.arange(curves.selection.shape[1])
    epochs = {STOPPED: curves.selection.argmax(0), TO_THE_END: torch.full_like(runs, len(curves.selection) - 1)}
    found: dict[str, Any] = {
        name: {"selection": curves.selection[at, runs].tolist(), "test": curves.test[at, runs].tolist()}
        for name, at in epochs.items()
    }
    return {**found, "epoch": (epochs[STOPPED] + 1).tolist(), "fit": [round(v, 4) for v in curves.fit.tolist()]}


def chosen(setting: Setting, seed: int, radii: Sequence[float]) -> dict[str, Any]:
    """All m at all radii; the runs of an m are consecutive, and the last ones, for each m, are plain training.

    With the mean norm of a group's gradient for each m, in plain training up to its best epoch.
    """
    count = len(setting.ms)
    ms = [m for m in setting.ms for _ in radii] + setting.ms
    curves = train(setting, seed, ms, [*radii] * count + [0.0] * count)
    best = int(curves.selection[:, -1].argmax()) + 1
    return {**at_protocols(curves), "norms": [float(f"{v:.5g}") for v in curves.norms[:best, -count:].mean(0).tolist()]}


def measured(setting: Setting, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one setting."""
    radii = [float(radius) for radius in options.radii.split(",")]
    console = Console(stderr=True)
    seeds = range(options.choosing)
    found = {str(seed): chosen(setting, seed, radii) for seed in track(seeds, f"{name}: radii", console=console)}
    record: dict[str, Any] = {**asdict(setting), "radii": radii, "choosing": found}
    seeds = track(range(FIRST_JUDGE, FIRST_JUDGE + options.judging), f"{name}: judged", console=console)
    return {**record, "judging": {str(seed): judged(setting, seed, record) for seed in seeds}}


def judged(setting: Setting, seed: int, record: dict[str, Any]) -> dict[str, Any]:
    """Plain training, and all m at their best radii by each protocol in turn."""
    rhos = [0.0, *(radius for protocol in PROTOCOLS for radius in best_radii(record, protocol))]
    return at_protocols(train(setting, seed, [setting.batch, *setting.ms * len(PROTOCOLS)], rhos))


def ms_of(record: dict[str, Any]) -> list[int]:
    """Those of a setting that was measured."""
    return Setting(**{key: record[key] for key in asdict(Setting(0.0))}).ms


def curves_of(record: dict[str, Any], protocol: str, by: str = "selection") -> Array:
    """By seed, m and radius: how many rows that choose (or test rows) are right [seeds, ms, radii]."""
    count = len(ms_of(record)) * len(record["radii"])
    hits = [seed[protocol][by][:count] for seed in record["choosing"].values()]
    return np.array(hits, dtype=float).reshape(len(hits), -1, len(record["radii"]))


def smoothed(curves: Array) -> Array:
    """Means of neighbouring radii, 1 : 2 : 1."""
    wide = np.pad(curves, [(0, 0)] * (curves.ndim - 1) + [(1, 1)], mode="edge")
    return (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]) / 4


def best_radii(record: dict[str, Any], protocol: str) -> list[float]:
    """For each m the radius, of those tried, at which the smoothed mean over the seeds is highest.

    What is more than 3 % below the highest counts as that: how far down a neighbour falls does not matter.
    """
    means = curves_of(record, protocol).mean(0)
    means = np.maximum(means, 0.97 * means.max(-1, keepdims=True))
    return [record["radii"][i] for i in smoothed(means).argmax(-1)]


def peaks(curves: Array, log_radii: Array) -> Array:
    """Logarithms of the best radii between those tried: the vertex of the parabola through the highest three."""
    top = curves.argmax(-1).clip(1, len(log_radii) - 2)
    below, at, above = (np.take_along_axis(curves, (top + k)[..., None], -1)[..., 0] for k in (-1, 0, 1))
    bend = 2 * at - below - above
    shift = np.where(bend > 0, (above - below) / (2 * np.where(bend > 0, bend, 1)), 0).clip(-1, 1)
    return log_radii[top] + shift * np.diff(log_radii).mean()


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, how: str) -> str:
        return f"{self.value:{how}} [{self.low:{how}}, {self.high:{how}}]"

    @classmethod
    def of(cls, value: Array, resampled: Array) -> Interval:
        """A number with what it is in resamples of the seeds."""
        low, high = np.quantile(resampled, (0.025, 0.975))
        return cls(float(value), float(low), float(high))


def slopes(ms: Sequence[int], logs: Array) -> Array:
    """Of the least-squares line of logarithms [..., ms] over log m."""
    x = np.log(ms) - np.log(ms).mean()
    return logs @ x / (x @ x)


@dataclass(frozen=True)
class Rule:
    """What holds of the best radii.

    Attributes:
        radii: For each m.
        slope: Of log radius over log m; rho_m / rho_B = sqrt(m / B) is 1/2.
        ratio: The radius for m = 1 over that for the whole batch.
        at_an_edge: Whether the highest of those tried is the smallest or largest one, for some m.
    """

    radii: list[Interval]
    slope: Interval
    ratio: Interval
    at_an_edge: bool


def rule(record: dict[str, Any], protocol: str, by: str = "selection", smooth: bool = True) -> Rule:
    """From the seeds that choose; intervals from resampling them.

    Args:
        record: Of a setting.
        protocol: One of PROTOCOLS.
        by: The rows by which a radius is best: those that choose, or ``test``.
        smooth: Whether means of neighbouring radii are looked at.
    """
    curves, ms = curves_of(record, protocol, by), ms_of(record)
    curves = smoothed(curves) if smooth else curves
    log_radii = np.log(record["radii"])
    again = peaks(_resampled(curves), log_radii)
    here = peaks(curves.mean(0), log_radii)
    tops = curves.mean(0).argmax(-1)
    return Rule(
        [Interval.of(np.exp(here[i]), np.exp(again[:, i])) for i in range(len(ms))],
        Interval.of(slopes(ms, here), slopes(ms, again)),
        Interval.of(np.exp(here[0] - here[-1]), np.exp(again[:, 0] - again[:, -1])),
        bool(np.isin(tops, (0, len(log_radii) - 1)).any()),
    )


def log_norms(record: dict[str, Any]) -> Array:
    """Of a group's gradient in plain training, by seed and m [seeds, ms]."""
    return np.log([seed["norms"] for seed in record["choosing"].values()])


def slope_of_norms(record: dict[str, Any]) -> Interval:
    """Of -log |g| over log m, g a group's gradient in plain training: 1/2 where examples have nothing in common."""
    logs = -log_norms(record)
    return Interval.of(slopes(ms_of(record), logs.mean(0)), slopes(ms_of(record), _resampled(logs)))


def _resampled(values: Array) -> Array:
    """Means over the first axis of rows drawn with replacement [RESAMPLES, ...]."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(values), size=(RESAMPLES, len(values)))
    counts = np.stack([np.bincount(draw, minlength=len(values)) for draw in draws])
    return np.tensordot(counts / len(values), values, 1)


PLAIN = 0
"""Stands for plain training where an m is asked for."""

OUTCOMES = {
    STOPPED: (STOPPED, STOPPED),
    "the same radii, last epoch": (STOPPED, TO_THE_END),
    TO_THE_END: (TO_THE_END, TO_THE_END),
}
"""By which protocol the radius is chosen, and at whose epoch it is judged."""


def accuracies(record: dict[str, Any], m: int, outcome: str) -> Array:
    """On the test, in percent, of the seeds that judge.

    Args:
        record: Of a setting.
        m: Or PLAIN.
        outcome: One of OUTCOMES.
    """
    ms, (chosen_by, judged_at) = ms_of(record), OUTCOMES[outcome]
    place = 0 if m == PLAIN else 1 + PROTOCOLS.index(chosen_by) * len(ms) + ms.index(m)
    hits = np.array([seed[judged_at]["test"][place] for seed in record["judging"].values()])
    return 100 * hits / (DIGITS - TRAINING - SELECTION)


def mean(values: Array) -> Interval:
    """Over seeds, with Student's interval."""
    middle, spread = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    half = float(student.ppf(0.975, len(values) - 1)) * spread
    return Interval(middle, middle - half, middle + half)


def difference(record: dict[str, Any], m: int, other: int, outcome: str) -> Interval:
    """Of the accuracies of two m, in points, seed by seed."""
    return mean(accuracies(record, m, outcome) - accuracies(record, other, outcome))


def radius_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The head of a table, and for each setting and protocol how the best radius depends on m."""
    found = [("labels", "protocol", "slope", "not smoothed", "by test rows", "of 1 / norm", "rho_1 / rho_B")]
    for name, setting in record["settings"].items():
        for protocol in PROTOCOLS:
            by = rule(setting, protocol)
            others = rule(setting, protocol, smooth=False), rule(setting, protocol, "test")
            found_by = [f"{r.slope:.2f}{' (at an edge)' if r.at_an_edge else ''}" for r in (by, *others)]
            ends = [f"{slope_of_norms(setting):.2f}", f"{by.ratio:.2f}"]
            found.append((name, protocol, *found_by, *ends))
    return found


def accuracy_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The head of a table, and a row for each m in each setting: best radii, those judged, and the test there."""
    found = [("labels", "m", "best rho", "rho", STOPPED, "last epoch", "rho", TO_THE_END)]
    for name, setting in record["settings"].items():
        radii = rule(setting, STOPPED).radii
        tried = [best_radii(setting, protocol) for protocol in PROTOCOLS]
        for number, m in enumerate([PLAIN, *ms_of(setting)]):
            best, *at = (f"{radii[number - 1]:.2f}", *(f"{t[number - 1]:.2f}" for t in tried)) if m else ("", "", "")
            means = [f"{mean(accuracies(setting, m, outcome)):.1f}" for outcome in OUTCOMES]
            found.append((name, str(m or "plain training"), best, at[0], *means[:2], at[1], means[2]))
    return found


def difference_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The head of a table, and for each setting and outcome the differences that matter, in points."""
    found = [("labels", "judged", "m = 1 over SAM", "SAM over plain", "m = 1 over plain")]
    for name, setting in record["settings"].items():
        batch = setting["batch"]
        for outcome in OUTCOMES:
            pairs = ((1, batch), (batch, PLAIN), (1, PLAIN))
            found.append((name, outcome, *(f"{difference(setting, *pair, outcome):+.2f}" for pair in pairs)))
    return found


def shown(title: str, cells: list[tuple[str, ...]]) -> Table:
    """A table for the terminal."""
    table = Table(title=title)
    for number, name in enumerate(cells[0]):
        table.add_column(name, justify="right" if number > 1 else "left")
    for row in cells[1:]:
        table.add_row(*row)
    return table


def draw(record: dict[str, Any], path: Path) -> None:
    """Best radius over m, beside what two rules say, and accuracy over m, both stopped early."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, setting) in enumerate(record["settings"].items()):
        ms, color, norms = np.array(ms_of(setting)), f"C{number}", np.exp(log_norms(setting).mean(0))
        radii = rule(setting, STOPPED).radii
        lines = {":": (ms / ms[-1]) ** 0.5, "-": norms[-1] / norms}
        for (style, line), what in zip(lines.items(), ("sqrt(m / B)", "|g_B| / |g_m|"), strict=True):
            label = None if number else f"SAM's radius times {what}"
            left.plot(ms, radii[-1].value * line, style, color=color, linewidth=1, label=label)
        over = [difference(setting, m, PLAIN, STOPPED) for m in ms_of(setting)]
        x = ms * 1.04 ** (2 * number - 1)  # side by side
        for axes, found, look in ((left, radii, "o"), (right, over, "o-")):
            bars = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
            axes.errorbar(x, [f.value for f in found], yerr=bars, fmt=look, color=color, capsize=3, label=name)
    right.axhline(0, linestyle=":", color="gray")
    left.set(xscale="log", yscale="log", ylabel="best radius")
    right.set(xscale="log", ylabel="accuracy over plain training, points")
    for axes in (left, right):
        axes.set_xticks(ms, map(str, ms))
        axes.set_xlabel("m: examples that share a perturbation")
        axes.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    ticks = [0.05, 0.1, 0.2, 0.5, 1.0]
    left.set_yticks(ticks, map(str, ticks))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", type=Path, help="a record: nothing is measured")
    parser.add_argument("--settings", default=";".join(SETTINGS), help="separated by semicolons")
    parser.add_argument("--radii", default=",".join(map(str, RADII)), help="comma-separated, each a factor further")
    parser.add_argument("--choosing", type=int, default=40, help="seeds that choose the radius")
    parser.add_argument("--judging", type=int, default=100, help="seeds that judge at the chosen radii")
    parser.add_argument("--record", type=Path, help="JSON file for every run")
    parser.add_argument("--plot", type=Path, help="SVG or PNG file for the picture")
    options = parser.parse_args()
    record = json.loads(options.show.read_text(encoding="utf-8")) if options.show else measured_all(options)
    if options.plot:
        draw(record, options.plot)
    for title, cells in (
        ("Slope of log radius over log m, 95 % interval", radius_rows(record)),
        ("Best radius and test accuracy", accuracy_rows(record)),
        ("Differences of test accuracy, points", difference_rows(record)),
    ):
        Console().print(shown(title, cells))


def measured_all(options: argparse.Namespace) -> dict[str, Any]:
    """A record, written after every setting; other settings that its file has stay there."""
    there = options.record and options.record.exists()
    record = json.loads(options.record.read_text(encoding="utf-8")) if there else {"settings": {}}
    for name in options.settings.split(";"):
        began = time.perf_counter()
        found = measured(SETTINGS[name], name, options)
        minutes = round((time.perf_counter() - began) / 60, 1)
        settings = {**record["settings"], name: {"minutes": minutes, **found}}
        record = {"torch": torch.__version__, "machine": platform.machine(), "settings": settings}
        if options.record:
            options.record.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    main()
