"""How close weights on a batch's examples bring one perturbation to a perturbation for each: a study.

    OMP_NUM_THREADS=1 python benchmarks/weights.py --data ../data/glue --record benchmarks/results/weights.json
    python benchmarks/weights.py --show benchmarks/results/weights.json --plot docs/assets/weights.svg
    python benchmarks/weights.py --data ../data/glue --models encoder --data-sets sst2 --states late --batches 4

A tiny encoder and a tiny decoder are trained on two data sets, with right labels and with 30 % wrong ones. At several
states of training, on batches of what they are trained on, the gradient of per-instance SAM,
``x = mean_i grad L_i(w + rho * g_i / |g_i|)``, is computed one example after the other, and beside it
``grad L(w + rho * a / |a|)`` with ``a = sum_i p_i g_i`` for every kind of weights ``p_i``: the error is its distance to
x in units of ``|x - grad L(w)|``, the cosine is that of what both add to ``grad L(w)``. The floor is what no
non-negative weights were found to beat, by minimising the error itself over them.

Nothing of deltasam is used: every gradient is plain autograd's, of one example or of the batch.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import minimize
from torch import Tensor, nn

EXAMPLES, TOKENS, WORDS, WIDTH, LAYERS = 16, 24, 4096, 64, 3
TRAINED_ON, TRAINING_BATCH, LEARNING_RATE = 1000, 32, 1e-3
RHOS = (0.005, 0.02, 0.05)
SIGMA = 1e-3
GAUSSIANS = 4
LARGEST = 4.0
FLOOR_STEPS = 12
WRONG = 0.3
STATES = {
    "untrained": (0, 0.0),
    "early": (60, 0.0),
    "late": (400, 0.0),
    "early, wrong labels": (60, WRONG),
    "late, wrong labels": (400, WRONG),
}
"""Steps of training, and the share of wrong labels."""

DATA_SETS = {"sst2": (("sentence",), 2), "mnli": (("premise", "hypothesis"), 3)}
"""The columns of the text, and the number of classes."""


def encoder(classes: int) -> nn.Module:
    """A BERT."""
    from transformers import BertConfig, BertForSequenceClassification

    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "vocab_size": WORDS}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=LAYERS, num_labels=classes, **sizes, **drops))


def decoder(classes: int) -> nn.Module:
    """A Llama that classifies by its last token."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "vocab_size": WORDS}
    return LlamaForSequenceClassification(
        LlamaConfig(num_hidden_layers=LAYERS, num_key_value_heads=4, num_labels=classes, pad_token_id=0, **sizes)
    )


MODELS = {"encoder": encoder, "decoder": decoder}


@dataclass(frozen=True)
class Rows:
    """Texts as numbers.

    Attributes:
        ids: One number per word, 0 where there is none [n, TOKENS].
        labels: [n].
    """

    ids: Tensor
    labels: Tensor

    def at(self, rows: Tensor) -> Rows:
        """Some of them."""
        return Rows(self.ids[rows], self.labels[rows])


def read(folder: Path, name: str, wrong: float) -> Rows:
    """The first rows of a data set, some with another label than they have.

    Args:
        folder: With a folder of ``train.jsonl.gz`` for each data set.
        name: Of the data set.
        wrong: The share of labels that are others.
    """
    columns, classes = DATA_SETS[name]
    with gzip.open(folder / name / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(TRAINED_ON), lines, strict=False)]
    ids = torch.zeros(len(rows), TOKENS, dtype=torch.long)
    for number, row in enumerate(rows):
        words = " ".join(row[column] for column in columns).lower().split()[:TOKENS]
        ids[number, : len(words)] = torch.tensor([1 + zlib.crc32(w.encode()) % (WORDS - 1) for w in words])
    labels = torch.tensor([int(row["label"]) for row in rows])
    generator = torch.Generator().manual_seed(1)
    flipped = torch.rand(len(rows), generator=generator) < wrong
    others = (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
    return Rows(ids, torch.where(flipped, others, labels))


class Loss:
    """The losses of a batch's examples and their gradients, as functions of all weights in one vector [P].

    Args:
        model: Its weights are written over.
        rows: The batch.
    """

    def __init__(self, model: nn.Module, rows: Rows) -> None:
        self._model, self._rows = model, rows
        self._params = list(model.parameters())
        self.start = nn.utils.parameters_to_vector(self._params).detach().clone()

    def logits(self, rows: Rows) -> Tensor:
        """What the model says [n, classes]."""
        return self._model(rows.ids, attention_mask=(rows.ids > 0).long()).logits

    def losses(self, moved: Tensor | None = None) -> Tensor:
        """Of every example [n], without a graph."""
        self._move(moved)
        with torch.no_grad():
            return F.cross_entropy(self.logits(self._rows), self._rows.labels, reduction="none")

    def gradient(self, moved: Tensor | None = None) -> Tensor:
        """Of the mean loss [P]."""
        self._move(moved)
        return self._flat(torch.autograd.grad(self._loss(self._rows), self._params, allow_unused=True))

    def of_one(self, number: int, moved: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss [] and gradient [P] of one example alone."""
        self._move(moved)
        loss = self._loss(self._rows.at(torch.tensor([number])))
        return loss.detach(), self._flat(torch.autograd.grad(loss, self._params, allow_unused=True))

    def residuals(self) -> tuple[Tensor, Tensor]:
        """By the logits, r = p - y and A r = (diag(p) - p p^T) r [n, classes]."""
        self._move(None)
        with torch.no_grad():
            p = self.logits(self._rows).softmax(1)
        r = p - F.one_hot(self._rows.labels, p.shape[1])
        return r, p * (r - (p * r).sum(1, keepdim=True))

    def _loss(self, rows: Rows) -> Tensor:
        return F.cross_entropy(self.logits(rows), rows.labels)

    def _move(self, moved: Tensor | None) -> None:
        nn.utils.vector_to_parameters(self.start if moved is None else self.start + moved, self._params)

    def _flat(self, gradients: tuple[Tensor | None, ...]) -> Tensor:
        pairs = zip(gradients, self._params, strict=True)
        return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in pairs])


@dataclass(frozen=True)
class Facts:
    """What is known of a batch's examples [n], at one radius.

    Attributes:
        norms: ``|g_i|``.
        slopes: ``|L_i(w + d) - L_i(w - d)| / 2 |d|`` for each Gaussian d [GAUSSIANS, n].
        seconds: ``(L_i(w + d) + L_i(w - d) - 2 L_i(w)) / |d|^2`` for each Gaussian [GAUSSIANS, n].
        random: ``|grad L_i(w + d) - g_i| / |d|`` for the first Gaussian.
        own: The same with ``d = rho g_i / |g_i|``.
        bend: ``2 (L_i(w + d) - L_i(w) - |d| |g_i|) / |d|^2`` with the same d.
        residual: ``|r_i|``.
        bent_residual: ``|A_i r_i|``.
        rho: The radius.
    """

    norms: Tensor
    slopes: Tensor
    seconds: Tensor
    random: Tensor
    own: Tensor
    bend: Tensor
    residual: Tensor
    bent_residual: Tensor
    rho: float

    def gaussian(self, draws: int) -> Tensor:
        """The size of the mean second difference over some draws."""
        return self.seconds[:draws].mean(0).abs()

    def slope(self, draws: int) -> Tensor:
        """The root of the mean square of the slopes over some draws."""
        return self.slopes[:draws].square().mean(0).sqrt()


def clipped(weights: Tensor) -> Tensor:
    """None more than so many times the mean."""
    return (weights / weights.mean()).clamp(max=LARGEST)


def floored(norms: Tensor) -> Tensor:
    """Not much smaller than the mean, where a norm is an estimate."""
    return norms.clamp(min=0.1 * norms.mean())


def shrunk(facts: Facts, draws: int, norms: Tensor) -> Tensor:
    """|second difference| / norm, moved towards equal weights by the share of its variance over examples that is noise.

    With one draw the noise is taken for that of the square of one normal number, of which the mean is known.
    """
    singles = facts.seconds[:draws] / norms
    weights = singles.mean(0).abs()
    noise = singles.var(0) / draws if draws > 1 else 2 / 3 * weights.square()
    kept = (1 - noise.mean() / weights.var()).clamp(min=0)
    return clipped(weights.mean() + kept * (weights - weights.mean()))


def shrunk_slopes(slopes: Tensor) -> Tensor:
    """slope^1/2, moved towards equal weights by the share of its variance over examples that one Gaussian explains.

    The slope along it is the norm times the size of a normal number, whose root varies by 0.18 of its squared mean.
    """
    weights = slopes.sqrt()
    kept = (1 - 0.1806 * weights.mean().square() / weights.var()).clamp(min=0)
    return weights.mean() + kept * (weights - weights.mean())


def damped(facts: Facts, least: float) -> Tensor:
    """``c + b^2 |g|``, b by how much more than its gradient says an example's loss rises, relative to that."""
    excess = facts.bend * facts.rho / (2 * facts.norms)
    return least**2 + facts.norms / facts.norms.mean() * excess.square()


KINDS: dict[str, Callable[[Facts], Tensor]] = {
    "equal": lambda f: torch.ones_like(f.norms),
    "norm^-1": lambda f: 1 / f.norms,
    "norm^-1/2": lambda f: f.norms.pow(-0.5),
    "norm^1/2": lambda f: f.norms.sqrt(),
    "norm": lambda f: f.norms,
    "slope^-1/2": lambda f: clipped(floored(f.slope(1)).pow(-0.5)),
    "slope^1/2": lambda f: clipped(f.slope(1).sqrt()),
    "slope^1/2, shrunk": lambda f: clipped(shrunk_slopes(f.slope(1))),
    "gaussian^2/slope": lambda f: clipped(f.gaussian(1).square() / floored(f.slope(1))),
    "1 + gaussian^2/slope": lambda f: 1 + finite(clipped(f.gaussian(1).square() / floored(f.slope(1)))),
    **{f"gaussian/norm, {k}": lambda f, k=k: clipped(f.gaussian(k) / f.norms) for k in (1, 2, 4)},
    **{f"gaussian/norm, {k}, shrunk": lambda f, k=k: shrunk(f, k, f.norms) for k in (1, 2, 4)},
    **{f"gaussian^2/norm, {k}": lambda f, k=k: clipped(f.gaussian(k).square() / f.norms) for k in (1, 2, 4)},
    **{
        f"1 + gaussian^2/norm, {k}": lambda f, k=k: 1 + finite(clipped(f.gaussian(k).square() / f.norms))
        for k in (1, 2, 4)
    },
    "random/norm": lambda f: f.random / f.norms,
    "random^2/norm": lambda f: f.random.square() / f.norms,
    "own/norm": lambda f: f.own / f.norms,
    "own^2/norm": lambda f: f.own.square() / f.norms,
    "bend/norm": lambda f: f.bend.abs() / f.norms,
    "bend^2/norm": lambda f: f.bend.square() / f.norms,
    "bend^2/norm, damped": lambda f: damped(f, 0.3),
    "gauss-newton": lambda f: f.norms * f.bent_residual / f.residual.pow(3),
    "logits": lambda f: f.bent_residual / f.residual.square(),
    "sqrt(logits)": lambda f: (f.bent_residual / f.residual.square()).sqrt(),
}
"""Every kind of weights, by what they are made of; where they are no numbers, they are equal."""

FLOOR = "floor"


class Batch:
    """Everything about one batch that does not hang on a radius.

    Args:
        loss: Of the batch.
        seed: Of the Gaussians.
    """

    def __init__(self, loss: Loss, seed: int) -> None:
        self._loss = loss
        self._losses, gradients = zip(*(loss.of_one(i) for i in range(EXAMPLES)), strict=True)
        self.gradients = torch.stack(gradients)
        self.plain = self.gradients.mean(0)
        self._norms = self.gradients.norm(dim=1)
        generator = torch.Generator().manual_seed(seed)
        noise = [SIGMA * torch.randn(len(loss.start), generator=generator) for _ in range(GAUSSIANS)]
        here = loss.losses()
        ends = [(d, loss.losses(d), loss.losses(-d)) for d in noise]
        self._seconds = torch.stack([((above - here) + (below - here)) / d.norm() ** 2 for d, above, below in ends])
        self._slopes = torch.stack([(above - below).abs() / (2 * d.norm()) for d, above, below in ends])
        d = noise[0]
        there = torch.stack([loss.of_one(i, d)[1] for i in range(EXAMPLES)])
        self._random = (there - self.gradients).norm(dim=1) / d.norm()
        r, bent = loss.residuals()
        self._residual, self._bent_residual = r.norm(dim=1), bent.norm(dim=1)

    def at(self, rho: float) -> tuple[Facts, Tensor]:
        """The facts, and the gradient of per-instance SAM [P]."""
        steps = rho * self.gradients / self._norms[:, None]
        losses, gradients = zip(*(self._loss.of_one(i, steps[i]) for i in range(EXAMPLES)), strict=True)
        there, start = torch.stack(gradients), torch.stack(self._losses)
        facts = Facts(
            norms=self._norms,
            slopes=self._slopes,
            seconds=self._seconds,
            random=self._random,
            own=(there - self.gradients).norm(dim=1) / rho,
            bend=2 * (torch.stack(losses) - start - rho * self._norms) / rho**2,
            residual=self._residual,
            bent_residual=self._bent_residual,
            rho=rho,
        )
        return facts, there.mean(0)


class Judge:
    """How close weights come, on one batch at one radius."""

    def __init__(self, loss: Loss, batch: Batch, exact: Tensor, rho: float) -> None:
        self._loss, self._batch, self._exact, self._rho = loss, batch, exact, rho
        self._sharpness = exact - batch.plain

    def of(self, weights: Tensor) -> tuple[float, float]:
        """Error and cosine."""
        added = self._gradient(weights) - self._batch.plain
        error = (added - self._sharpness).norm() / self._sharpness.norm()
        cosine = added @ self._sharpness / (added.norm() * self._sharpness.norm())
        return float(error), float(cosine)

    def floor(self, start: Tensor) -> tuple[float, float]:
        """Error and cosine of the weights at which the error is least, searched from good ones."""
        best: list[tuple[float, np.ndarray]] = []

        def value(p: np.ndarray) -> tuple[float, np.ndarray]:
            found, slope = self._error_squared(torch.from_numpy(p).float())
            best.append((found, p.copy()))
            return found, slope.double().numpy()

        first = (start / start.mean()).double().numpy()
        options = {"maxfun": FLOOR_STEPS, "maxiter": FLOOR_STEPS}
        minimize(value, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * EXAMPLES, options=options)
        return self.of(torch.from_numpy(min(best, key=lambda pair: pair[0])[1]).float())

    def _error_squared(self, weights: Tensor) -> tuple[float, Tensor]:
        """The squared error, and its slope by the weights [n]; the Hessian's product is a difference of gradients."""
        ascent = weights @ self._batch.gradients
        length = ascent.norm()
        way = ascent / length
        rest = self._loss.gradient(self._rho * way) - self._exact
        size, step = rest.norm(), 0.1 * self._rho
        ends = [self._loss.gradient(self._rho * way + sign * step * rest / size) for sign in (1, -1)]
        bent = (ends[0] - ends[1]) * (size / (2 * step))
        along = 2 * self._rho / length * (self._batch.gradients @ (bent - way * (way @ bent)))
        unit = self._sharpness.square().sum()
        return float(size**2 / unit), along / unit

    def _gradient(self, weights: Tensor) -> Tensor:
        ascent = weights @ self._batch.gradients
        return self._loss.gradient(self._rho * ascent / ascent.norm())


def judged(loss: Loss, seed: int) -> dict[str, dict[str, list[float]]]:
    """Error and cosine of every kind of weights on a batch, by radius."""
    batch, found = Batch(loss, seed), {}
    for rho in RHOS:
        facts, exact = batch.at(rho)
        judge = Judge(loss, batch, exact, rho)
        kinds = {name: finite(of(facts)) for name, of in KINDS.items()}
        errors = {name: judge.of(weights) for name, weights in kinds.items()}
        errors[FLOOR] = min(judge.floor(kinds[min(errors, key=lambda name: errors[name][0])]), min(errors.values()))
        found[str(rho)] = {name: [round(v, 4) for v in pair] for name, pair in errors.items()}
    return found


def finite(weights: Tensor) -> Tensor:
    """Equal ones where they are no numbers or all 0."""
    usable = bool(weights.isfinite().all()) and bool(weights.sum() > 0)
    return weights / weights.mean() if usable else torch.ones_like(weights)


def trained(name: str, rows: Rows, classes: int, steps: int) -> nn.Module:
    """A model after some steps; the more steps follow on the fewer."""
    torch.manual_seed(1)  # other models than those that the constants of the methods were chosen with
    model = MODELS[name](classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        batch = rows.at(torch.randint(len(rows.labels), (TRAINING_BATCH,), generator=generator))
        loss = F.cross_entropy(model(batch.ids, attention_mask=(batch.ids > 0).long()).logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@dataclass(frozen=True)
class Cell:
    """A model at a state of its training on a data set."""

    folder: Path
    model: str
    data: str
    state: str
    batches: int

    def run(self) -> dict[str, Any]:
        """Everything that is found in it."""
        torch.set_num_threads(1)
        steps, wrong = STATES[self.state]
        rows = read(self.folder, self.data, wrong)
        model = trained(self.model, rows, DATA_SETS[self.data][1], steps)
        start = Loss(model, rows)
        with torch.no_grad():
            logits = start.logits(rows)
        fit = float((logits.argmax(1) == rows.labels).float().mean())
        loss = float(F.cross_entropy(logits, rows.labels))
        generator, found = torch.Generator().manual_seed(2), []
        for number in range(self.batches):
            batch = rows.at(torch.randperm(len(rows.labels), generator=generator)[:EXAMPLES])
            nn.utils.vector_to_parameters(start.start, list(model.parameters()))
            found.append(judged(Loss(model, batch), number))
        return {
            "model": self.model,
            "data": self.data,
            "state": self.state,
            "loss": round(loss, 4),
            "fit": fit,
            "batches": found,
        }


def cells(options: argparse.Namespace) -> list[Cell]:
    """All combinations that were asked for, the longest first."""
    return [
        Cell(options.data, model, data, state, options.batches)
        for state in reversed(options.states.split(";"))
        for model in options.models.split(",")
        for data in options.data_sets.split(",")
    ]


SHIPPED = {
    "equal": "sam",
    "bend^2/norm, damped": "delta_sam",
    "norm^1/2": "delta_sam:weights=norms",
    "slope^1/2, shrunk": "delta_sam:weights=slopes",
    "gaussian/norm, 2, shrunk": "delta_sam:weights=curvature",
}
"""The methods that have these weights."""

LEAST = 1e-3
"""An error below this counts as this."""


@dataclass(frozen=True)
class Ratio:
    """Of the errors of two kinds of weights on the same batches: the geometric mean, and its 95 % interval.

    Errors of single batches differ by orders of magnitude, and what is far off would decide a mean of differences. The
    models and data sets are taken as given, their batches as drawn.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_of(
    record: dict[str, Any],
    kind: str,
    states: Collection[str],
    rhos: Collection[float] = RHOS,
    other: str = "equal",
) -> Ratio:
    """Over all batches, models and data sets at some states; every batch counts with the mean over some radii."""
    means, variances = [], []
    for cell in record["cells"]:
        if cell["state"] in states:
            logs = [_log_ratio(batch, kind, other, rhos) for batch in cell["batches"]]
            means.append(statistics.fmean(logs))
            variances.append(statistics.variance(logs) / len(logs) if len(logs) > 1 else math.nan)
    mean, half = statistics.fmean(means), 1.96 * math.sqrt(sum(variances)) / len(variances)
    return Ratio(*map(math.exp, (mean, mean - half, mean + half)))


def _log_ratio(batch: dict[str, Any], kind: str, other: str, rhos: Collection[float]) -> float:
    errors = ([max(LEAST, batch[str(rho)][k][0]) for rho in rhos] for k in (kind, other))
    return statistics.fmean(math.log(a / b) for a, b in zip(*errors, strict=True))


def median(record: dict[str, Any], kind: str, states: Collection[str], number: int) -> float:
    """Of the errors (number 0) or the cosines (1) of a kind of weights."""
    cells = [cell for cell in record["cells"] if cell["state"] in states]
    return statistics.median(at[kind][number] for cell in cells for batch in cell["batches"] for at in batch.values())


def states_of(record: dict[str, Any]) -> list[str]:
    """Those that were measured, in turn."""
    return list(dict.fromkeys(cell["state"] for cell in record["cells"]))


def table_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The head of a table, and a row for each kind of weights, the nearest first."""
    states = states_of(record)
    kinds = sorted((*KINDS, FLOOR), key=lambda kind: ratio_of(record, kind, states).mean)
    found = [("weights", *states, "all", "median error", "cosine")]
    for kind in kinds:
        ratios = [ratio_of(record, kind, [state]) for state in states] + [ratio_of(record, kind, states)]
        medians = [f"{median(record, kind, states, number):.2f}" for number in (0, 1)]
        found.append((kind, *map(str, ratios), *medians))
    return found


def table(record: dict[str, Any]) -> Table:
    """The same for the terminal."""
    head, *others = table_rows(record)
    shown = Table(title="Error over that of equal weights, geometric mean and 95 % interval")
    for number, name in enumerate(head):
        shown.add_column(name, justify="right" if number else "left")
    for row in others:
        shown.add_row(*row)
    return shown


def draw(record: dict[str, Any], path: Path) -> None:
    """The weights that methods have, and the floor, at every state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    states = states_of(record)
    shown = {**{kind: name for kind, name in SHIPPED.items() if kind != "equal"}, FLOOR: "the best weights there are"}
    for place, (kind, name) in enumerate(shown.items()):
        ratios = [ratio_of(record, kind, [state]) for state in states]
        bars = [[r.mean - r.low for r in ratios], [r.high - r.mean for r in ratios]]
        x = [number + 0.13 * (place - (len(shown) - 1) / 2) for number in range(len(states))]
        color = "black" if kind == FLOOR else f"C{place}"
        axes.errorbar(x, [r.mean for r in ratios], yerr=bars, fmt="o", color=color, capsize=3, label=name)
    axes.axhline(1, linestyle=":", color="gray")
    axes.annotate("as far as SAM", (len(states) - 0.55, 1.02), ha="right", va="bottom", fontsize=9, color="gray")
    axes.set_xticks(range(len(states)), [state.replace(", ", ",\n") for state in states])
    axes.set(xlabel="state of training", ylabel="error over SAM's", yscale="log")
    axes.set_yticks([0.2, 0.3, 0.5, 0.7, 1.0, 1.2], ["0.2", "0.3", "0.5", "0.7", "1", "1.2"], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All cells, in so many processes."""
    work = cells(options)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        yield from track(
            pool.imap_unordered(Cell.run, work), "models at states", total=len(work), console=Console(stderr=True)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of GLUE's tasks, each with train.jsonl.gz")
    parser.add_argument("--show", type=Path, help="a record: nothing is measured")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--data-sets", default=",".join(DATA_SETS), help="comma-separated")
    parser.add_argument("--states", default=";".join(STATES), help="separated by semicolons")
    parser.add_argument("--batches", type=int, default=30, help="for each model at each state")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--record", type=Path, help="JSON file for the errors and cosines on every batch")
    parser.add_argument("--plot", type=Path, help="SVG or PNG file for the picture")
    options = parser.parse_args()
    if options.show:
        record = json.loads(options.show.read_text(encoding="utf-8"))
    elif options.data:
        record = measured(options)
    else:
        parser.error("give --data, a folder of GLUE's tasks, or --show, a record")
    if options.record:
        options.record.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    if options.plot:
        draw(record, options.plot)
    Console().print(table(record))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """A record."""
    began = time.perf_counter()
    order = [(m, d, s) for s in STATES for m in MODELS for d in DATA_SETS]
    found = sorted(run(options), key=lambda c: order.index((c["model"], c["data"], c["state"])))
    minutes = round((time.perf_counter() - began) / 60, 1)
    return {"torch": torch.__version__, "machine": platform.machine(), "minutes": minutes, "cells": found}


if __name__ == "__main__":
    main()
