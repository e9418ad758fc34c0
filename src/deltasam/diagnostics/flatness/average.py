"""Average-case sharpness: how much the loss rises on average when Gaussian noise is added to the weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltasam.core.checks import positive, whole
from deltasam.core.passes import Closure
from deltasam.core.restore import WeightStore, moved
from deltasam.core.vectors import Vector
from deltasam.diagnostics.batches import Batches, epsilon_of, restoring_state
from deltasam.diagnostics.flatness.ascent import in_units, relative_units
from deltasam.diagnostics.flatness.sharpness import CAUTION, warn_if_rounding


@dataclass(frozen=True)
class AverageSharpness:
    """``E[L(w + d)] - L(w)``, d Gaussian noise on every weight.

    Attributes:
        rise: The estimate, in units of the loss: the mean of ``rises``.
        standard_error: Of it, over the noise that was drawn; the examples are taken as they are.
        loss: Mean loss at the weights as they are.
        sigma: Standard deviation of the noise, per weight.
        adaptive: Whether sigma is in units of the size of each weight.
        examples: How many there are.
        rises: ``[L(w + d) + L(w - d)] / 2 - L(w)`` for every d.
    """

    rise: float
    standard_error: float
    loss: float
    sigma: float
    adaptive: bool
    examples: int
    rises: tuple[float, ...]

    @property
    def reading(self) -> str:
        """What the number says, and what it does not."""
        units = " times the size of each weight" if self.adaptive else ""
        trace = "sum of w² H_ww over the weights w, H the Hessian" if self.adaptive else "Hessian's trace"
        return (
            f"Noise of standard deviation {self.sigma:g}{units} on the weights raises the mean loss from "
            f"{self.loss:.4g} by {self.rise:.3g} ± {self.standard_error:.1g} (standard error over {len(self.rises)} "
            f"pairs of noise and its opposite; it says nothing of other examples). For small noise that is half the "
            f"noise's variance times the {trace}: an average over all directions, most of which are flat, "
            f"and so far below any worst case at the same distance. {CAUTION}"
        )


def average_sharpness(
    model: nn.Module,
    closures: Sequence[Closure],
    *,
    sigma: float = 3e-3,
    adaptive: bool = False,
    samples: int = 4,
    seed: int = 0,
) -> AverageSharpness:
    """Estimate average-case sharpness, ``E[L(w + d)] - L(w)`` with ``d ~ N(0, sigma²)``, independent per weight.

    Every noise d is taken together with its opposite -d (antithetic pairs): their mean has the same expectation, and
    what is linear in d, most of the scatter, cancels. ``adaptive``: ``d_i ~ N(0, sigma² w_i²)``. For small sigma the
    result is ``sigma² / 2 tr H``, adaptive ``sigma² / 2 sum_i w_i² H_ii``.

    The model stays in the mode in which it is: evaluation mode, unless dropout is meant; then all forwards see the same
    masks. Weights, buffers, gradients and random state are afterwards what they were, bit for bit, also after an
    exception. Cost: ``2 samples + 1`` forwards of all batches.

    Source: the average-case sharpness of Andriushchenko et al. 2023, arXiv 2302.07011, section 2; pairs are ours.

    Args:
        model: With the weights to measure at.
        closures: One per batch; each runs one forward and returns one loss per example [n] (``deltasam.core.closure``).
        sigma: Standard deviation of the noise; a tenth of the weights' own size is small noise.
        adaptive: Sigma is in units of the size of each weight.
        samples: Pairs of noise, 2 or more. Few directions of a trained network are bent at all, so pairs differ much:
            look at the standard error.
        seed: Of the noise, which is the same on every device.

    Raises:
        RuntimeError: Gradients are switched off.
        ValueError: sigma is not above 0, samples is below 2, there is no closure, or a loss is not finite or not one
            per example.
    """
    sigma = positive("average_sharpness", "sigma", sigma)
    samples = whole("average_sharpness", "samples", samples, least=2)
    with restoring_state(model):
        batches = Batches("average_sharpness", model, closures)
        units, store = relative_units(batches.params) if adaptive else None, WeightStore()
        rises = [
            (_rise(batches, step, sigma, store) + _rise(batches, step, -sigma, store)) / 2
            for step in (in_units(noise, units) for noise in _draws(batches.params, samples, seed))
        ]
        rise, error = statistics.fmean(rises), statistics.stdev(rises) / math.sqrt(samples)
        warn_if_rounding("average_sharpness", "sigma", sigma, rise, batches.loss, epsilon_of(batches.params))
        return AverageSharpness(rise, error, batches.loss, sigma, adaptive, batches.examples, tuple(rises))


def _rise(batches: Batches, step: Vector, factor: float, store: WeightStore) -> float:
    with moved(batches.params, step, factor, store):
        return batches.rise(batches.everything)


def _draws(params: Sequence[Tensor], samples: int, seed: int) -> Iterator[list[Tensor]]:
    """Standard normal noise of the parameters' shapes, again and again; drawn on the CPU, so the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield [torch.randn(p.shape, generator=generator, dtype=_drawn_in(p), device="cpu").to(p.device) for p in params]


def _drawn_in(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
