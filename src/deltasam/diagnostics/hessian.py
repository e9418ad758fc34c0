"""The Hessian of the mean loss: its largest eigenvalues and its trace."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltasam.core.checks import fraction, whole
from deltasam.core.passes import Closure
from deltasam.core.torch_internals.compiled import eager
from deltasam.diagnostics.axes import axes_or_new, by_name
from deltasam.diagnostics.batches import Batches, restoring_state
from deltasam.diagnostics.flatness.sharpness import CAUTION, RESCALING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from deltasam.diagnostics.hessian_operator import ClosureHessian


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, attention is computed from plain products, and compiled code runs as it was written.

    The fused kernels of attention, and compiled code, have no derivative of their derivative.
    """
    with eager(), sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True)
class HessianSpectrum:
    """Curvature of the mean loss in weight space, in units of the loss per squared distance.

    Attributes:
        eigenvalues: The largest ones, largest first.
        trace: Estimate of the sum of all eigenvalues.
        trace_standard_error: Of the estimate, over the random vectors; the examples are taken as they are.
        loss: Mean loss at the weights as they are.
        weights: How many trainable weights there are, and so eigenvalues in all.
        examples: How many there are.
    """

    eigenvalues: tuple[float, ...]
    trace: float
    trace_standard_error: float
    loss: float
    weights: int
    examples: int

    @property
    def reading(self) -> str:
        """What the numbers say, and what they do not."""
        return (
            f"Of {self.weights:,} eigenvalues the largest is {self.eigenvalues[0]:.4g}: where the gradient is small, "
            f"the loss rises by half of that times the squared distance in the steepest direction. The trace, the sum "
            f"of all, is {self.trace:.4g} ± {self.trace_standard_error:.2g} (standard error). They describe these "
            f"{self.examples} examples at this point, to second order. {RESCALING}{CAUTION}"
        )


def hessian_spectrum(
    model: nn.Module,
    closures: Sequence[Closure],
    *,
    k: int = 5,
    tolerance: float = 1e-3,
    trace_samples: int = 8,
    seed: int = 0,
) -> HessianSpectrum:
    """Find the largest eigenvalues of the mean loss's Hessian, and estimate its trace.

    Eigenvalues by the Lanczos method (SciPy's ``eigsh``), the trace by Hutchinson's estimator, from products with the
    Hessian alone (curvlinops). A product takes three to four passes of all batches; the eigenvalues take a product
    for each vector that the search begins with, ``max(8, 2 k + 2)``, or more, and the memory of as many models.
    Attention runs without fused kernels, which have no second derivative.

    The model stays in the mode in which it is: evaluation mode, unless dropout is meant; then all products see the same
    masks. Weights, buffers, gradients and random state are afterwards what they were, bit for bit, also after an
    exception.

    Source: Yao et al. 2020, "PyHessian", arXiv 1912.07145, for both in deep learning.

    Args:
        model: With the weights to measure at.
        closures: One per batch; each runs one forward and returns one loss per example [n] (``deltasam.core.closure``).
        k: How many eigenvalues; fewer than there are weights.
        tolerance: Relative error of an eigenvalue at which the search stops; 0 is machine precision.
        trace_samples: Random vectors, 2 or more.
        seed: Of these, and of where the search begins.

    Raises:
        ModuleNotFoundError: curvlinops is not installed.
        RuntimeError: Gradients are switched off, a function of the model has no second derivative, or the eigenvalues
            were not found to the tolerance.
        ValueError: k, the tolerance or trace_samples is out of range, there is no closure, or a loss is not finite or
            not one per example.
    """
    k = whole("hessian_spectrum", "k", k)
    tolerance = fraction("hessian_spectrum", "tolerance", tolerance)
    trace_samples = whole("hessian_spectrum", "trace_samples", trace_samples, least=2)
    with restoring_state(model), twice_differentiable():
        batches = Batches("hessian_spectrum", model, closures)
        hessian = _operator(batches)
        if k >= hessian.shape[0]:
            raise ValueError(f"hessian_spectrum(k={k}): the model has {hessian.shape[0]} weights; k must be smaller")
        eigenvalues = _largest(hessian, k, tolerance, seed)
        traces = _traces(hessian, trace_samples, seed)
        return HessianSpectrum(
            eigenvalues=tuple(eigenvalues),
            trace=statistics.fmean(traces),
            trace_standard_error=statistics.stdev(traces) / math.sqrt(trace_samples),
            loss=batches.loss,
            weights=hessian.shape[0],
            examples=batches.examples,
        )


def _operator(batches: Batches) -> ClosureHessian:
    try:
        from deltasam.diagnostics.hessian_operator import ClosureHessian
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"hessian_spectrum needs the library {error.name!r}, which is not installed; "
            f"pip install 'deltasam[hessian]'",
            name=error.name,
        ) from error
    return ClosureHessian(batches)


def _largest(hessian: ClosureHessian, k: int, tolerance: float, seed: int) -> list[float]:
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    wide = torch.float64 if hessian.dtype == torch.float64 else torch.float32
    start = torch.randn(
        hessian.shape[0], generator=torch.Generator().manual_seed(seed), dtype=wide, device="cpu"
    ).numpy()
    operator = hessian.to_scipy(start.dtype)
    if not operator.matvec(start).any():
        return [0.0] * k  # a random vector shows it: the Hessian is 0, with which ARPACK cannot begin
    try:
        found = eigsh(operator, k, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"hessian_spectrum(k={k}, tolerance={tolerance:g}): {len(error.eigenvalues)} of {k} eigenvalues were found "
            f"to the tolerance; raise it, or compute in a wider floating-point type"
        ) from error
    return sorted(found.tolist(), reverse=True)


def _traces(hessian: ClosureHessian, samples: int, seed: int) -> list[float]:
    """Independent estimates of the trace, one random vector each."""
    from curvlinops import hutchinson_trace

    torch.manual_seed(seed)  # put back with everything else
    return [float(hutchinson_trace(hessian, 1)) for _ in range(samples)]


def plot_spectrum(results: HessianSpectrum | Mapping[str, HessianSpectrum], ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues of the Hessian; the legend has the trace with its standard error.

    Args:
        results: One, or those of several models by name.
        ax: Where; a new figure unless given.
    """
    ax = axes_or_new(ax)
    named = by_name(results, "model")
    for number, (name, result) in enumerate(named.items()):
        ranks = [rank + 0.8 * (number - (len(named) - 1) / 2) / len(named) for rank in _ranks(result)]
        trace = f"trace {result.trace:.3g} ± {result.trace_standard_error:.2g} (standard error)"
        ax.bar(ranks, result.eigenvalues, width=0.8 / len(named), label=f"{name}: {trace}")
    ax.axhline(0, color="gray", linewidth=1)
    ax.set_xticks(_ranks(max(named.values(), key=lambda result: len(result.eigenvalues))))
    ax.set(xlabel="eigenvalue, from the largest", ylabel="curvature (loss per squared distance)")
    ax.legend()
    return ax


def _ranks(result: HessianSpectrum) -> list[int]:
    return list(range(1, len(result.eigenvalues) + 1))
