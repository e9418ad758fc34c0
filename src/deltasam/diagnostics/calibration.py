"""Whether a classifier is right as often as it says: its confidence beside its accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from deltasam.diagnostics.axes import axes_or_new, by_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWS = 1000


@dataclass(frozen=True)
class ReliabilityBin:
    """The examples whose confidence lies in one part of [0, 1].

    Attributes:
        low: Where the part begins; this confidence is in it.
        high: Where it ends; this confidence is in the next one, but for 1, which is in the last.
        count: How many there are.
        confidence: Their mean probability of the predicted class; None where there are none.
        accuracy: Which share of them is predicted right; None where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Confidence beside accuracy, over all examples.

    Attributes:
        examples: How many.
        accuracy: Which share is predicted right.
        confidence: Mean probability of the predicted class.
        ece: Expected calibration error: mean distance of confidence from accuracy over the bins, by their counts.
        ece_by_chance: What a perfectly calibrated model of the same confidences stays below in 95 of 100 samples of
            this size: its labels are drawn from its own probabilities.
        brier: Mean squared distance of the probabilities from the right class's, summed over classes; 0 to 2.
        nll: Mean negative log-likelihood of the right class, in nats.
        bins: The reliability diagram.
    """

    examples: int
    accuracy: float
    confidence: float
    ece: float
    ece_by_chance: float
    brier: float
    nll: float
    bins: tuple[ReliabilityBin, ...]

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        side = "over" if self.confidence > self.accuracy else "under"
        verdict = (
            f"is not calibrated: on average it is {side}confident by {abs(self.confidence - self.accuracy):.3f}"
            if self.ece > self.ece_by_chance
            else "cannot be told from a calibrated one on so few examples"
        )
        return (
            f"The model's confidence is off its accuracy by {self.ece:.3f} (ECE) on {self.examples} examples. A "
            f"perfectly calibrated model would show up to {self.ece_by_chance:.3f} by chance alone, so this one "
            f"{verdict}. ECE depends on the bins and looks at the predicted class only; the Brier score and the NLL "
            f"mix calibration with accuracy. None of them says whether it holds on other data."
        )


def calibration(logits: Tensor, labels: Tensor, *, bins: int = 15, seed: int = 0) -> Calibration:
    """Compare a classifier's confidence with its accuracy, over equally wide bins of confidence.

    The expected calibration error is that of Guo et al. 2017 (arXiv 1706.04599). On few examples it is above 0 for any
    model; how far is found by drawing labels as a calibrated model's would be (consistency resampling, Bröcker and
    Smith 2007).

    Args:
        logits: [n, classes].
        labels: The right classes [n].
        bins: How many.
        seed: Of the draws.

    Raises:
        ValueError: The shapes do not fit, there are no examples or fewer than two classes, a logit is not finite, or a
            label is none of the classes.
    """
    _check(logits, labels, bins)
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    probabilities = logits.softmax(1)
    confidence, right = _confidence(probabilities, labels)
    squares = (probabilities - one_hot(labels, logits.shape[1])).square().sum(1)
    return Calibration(
        examples=len(labels),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=float(_errors(confidence, right, bins)),
        ece_by_chance=_by_chance(confidence, bins, seed),
        brier=float(squares.mean()),
        nll=float(cross_entropy(logits, labels)),
        bins=_reliability(confidence, right, bins),
    )


def calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error of logits [n, classes] for labels [n], as in ``calibration``."""
    # Not that of torchmetrics, which puts a confidence of 1 into a bin of its own.
    return float(_errors(*_confidence(logits.double().softmax(1), labels), bins))


def plot_reliability(results: Calibration | Mapping[str, Calibration], ax: Axes | None = None) -> Axes:
    """Draw accuracy over confidence, bin by bin; the size of a point grows with its count.

    Args:
        results: One, or several by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    ax.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color="gray", label="calibrated")
    for name, result in by_name(results, "model").items():
        full: Any = [(b.confidence, b.accuracy, 12 + 240 * b.count / result.examples) for b in result.bins if b.count]
        x, y, sizes = zip(*full, strict=True)
        (line,) = ax.plot(x, y, linewidth=1, alpha=0.6)
        ax.scatter(x, y, s=sizes, color=line.get_color(), alpha=0.8, label=name)
    ax.set(xlabel="confidence (mean probability of the predicted class)", ylabel="accuracy (share predicted right)")
    ax.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
    ax.legend(markerscale=0.5)
    return ax


def _check(logits: Tensor, labels: Tensor, bins: int) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels) or logits.shape[1] < 2:
        raise ValueError(
            f"calibration: logits of shape {list(logits.shape)} and labels of shape {list(labels.shape)}; give "
            f"[n, classes] with two classes or more, and [n]"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("calibration: a logit is not finite; there is no confidence to compare")
    outside = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(outside):
        raise ValueError(
            f"calibration: label {outside[0].item()} is none of the classes 0 to {logits.shape[1] - 1}; leave out rows "
            f"without a right class"
        )
    if bins < 1:
        raise ValueError(f"calibration(bins={bins}): give 1 or more")


def _confidence(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of the predicted class [n], and 1 where that is the right one, else 0 [n]."""
    confidence, predicted = probabilities.max(1)
    return confidence, (predicted == labels).double()


def _edges(bins: int) -> Tensor:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


def _places(confidence: Tensor, bins: int) -> Tensor:
    """The bin of each confidence [n]; a confidence of 1 is in the last."""
    return (torch.bucketize(confidence, _edges(bins), right=True) - 1).clamp(max=bins - 1)


def _reliability(confidence: Tensor, right: Tensor, bins: int) -> tuple[ReliabilityBin, ...]:
    places, edges = _places(confidence, bins), _edges(bins).tolist()
    found = []
    for i in range(bins):
        inside = places == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (None, None)
        found.append(ReliabilityBin(edges[i], edges[i + 1], count, *means))
    return tuple(found)


def _by_chance(confidence: Tensor, bins: int, seed: int) -> float:
    """The 95 % quantile of the calibration error over draws in which each example is right as often as it says."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(_DRAWS, len(confidence), generator=generator, dtype=torch.float64, device="cpu")
    return float(_errors(confidence, (draws < confidence).double(), bins).quantile(0.95))


def _errors(confidence: Tensor, right: Tensor, bins: int) -> Tensor:
    """The calibration error of confidences [n] that were right or not [..., n]: one for each row [...]."""
    gaps = right.new_zeros(*right.shape[:-1], bins).index_add_(-1, _places(confidence, bins), right - confidence)
    return gaps.abs().sum(-1) / len(confidence)
