"""What rounding leaves of a perturbation of bfloat16 weights: moved weights beside the engine's moved outputs.

    python benchmarks/precision.py                   # MiniLM-L6 in bfloat16
    python benchmarks/precision.py --rho 0.01,0.05,0.5

The same perturbation, that of SAM, is made in two ways: the weights are moved (and rounded), or with m = batch size the
outputs of the layers are. *wanted* is computed in float32 from the same gradient. Printed are the realised length over
the wanted one and the cosine between them: of the weights themselves, and of the change of the layers' outputs.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cost import batch_of, encoder
from deltasam.core.passes import Passes
from deltasam.core.restore import WeightStore
from deltasam.core.runtime import Runtime
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.outer_products import GramCache, contract
from deltasam.per_example.recorder import Record


class Agreement:
    """Sums that make a length ratio and a cosine between what came out and what was wanted."""

    def __init__(self) -> None:
        self._real = self._wanted = self._both = 0.0

    def add(self, real: Tensor, wanted: Tensor) -> None:
        """Take two vectors of any shape."""
        real, wanted = real.double(), wanted.double()
        self._real += float(real.square().sum())
        self._wanted += float(wanted.square().sum())
        self._both += float((real * wanted).sum())

    def __str__(self) -> str:
        ratio = (self._real / self._wanted) ** 0.5
        cosine = self._both / (self._real * self._wanted) ** 0.5 if self._real else float("nan")
        return f"{ratio:.2f} / {cosine:.3f}"


def agreements(rho: float, examples: int = 16, tokens: int = 32) -> tuple[Agreement, Agreement, Agreement]:
    """Of the weights, of the outputs where weights are moved, and of the outputs where outputs are moved."""
    torch.manual_seed(0)
    model = encoder().train().to(torch.bfloat16)
    inputs, labels = batch_of(examples, tokens)
    passes = Passes(model, lambda: F.cross_entropy(model(**inputs).logits, labels), Runtime(), WeightStore())
    record = Record(passes.structure)
    with record.open():
        loss = passes.first()
    gradients = ExampleGradients(record.uses, passes.grad(loss, record.outputs), 1)
    factors = rho / gradients.norms()
    gradients.scale(factors)
    products = GramCache(wide=False)
    of_weights, by_weights, by_outputs = Agreement(), Agreement(), Agreement()
    for use in record.uses:
        if use.kind != "product" or use.product is None or use.product.weight.ndim != 2:
            continue
        weight, x = use.product.weight.detach(), use.product.x.detach()
        gradient = gradients.of[id(use.product.weight)]
        step = gradient.matrix(weight.shape)[0].float()
        moved = (weight.float() + step).to(weight.dtype)
        of_weights.add(moved.float() - weight.float(), step)
        y, wanted = F.linear(x, weight), F.linear(x.float(), step)
        by_weights.add(F.linear(x, moved).float() - y.float(), wanted)
        rows = x.reshape(1, -1, x.shape[-1])
        shifted = y.reshape(1, -1, y.shape[-1])
        for term in gradient.outers:
            shifted = contract(shifted, rows, use.product.axis, term, products)
        if gradient.dense is not None:
            shifted = torch.baddbmm(shifted, rows, gradient.dense.mT.to(y.dtype))
        if gradient.holds_bias:  # it moves with the weight
            wanted = wanted + gradient.bias_total()
        by_outputs.add(shifted.view(y.shape).float() - y.float(), wanted)
    return of_weights, by_weights, by_outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rho", default="0.005,0.02,0.05,0.2", help="radii, comma-separated")
    options = parser.parse_args()
    table = Table("rho", "moved weights: weights", "moved weights: outputs", "moved outputs: outputs")
    table.title = "realised length / cosine to what was wanted, bfloat16 weights"
    for rho in options.rho.split(","):
        table.add_row(rho, *map(str, agreements(float(rho))))
    Console().print(table)


if __name__ == "__main__":
    main()
