"""Flat-LoRA: Gaussian noise on the merged weights of adapted layers, whose own weights are frozen."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.checks import nonnegative
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Method, Step
from deltasam.methods.bases.gradient_state import refuse_sharded
from deltasam.methods.bases.known_perturbation import fill_in_one_pass


class FlatLoRA(Method, name="flat_lora"):
    """Gradient under noise in the merged weights: ``grad L(W + s B A + z)``, ``z_ij ~ N(0, rho^2 |W_i|^2 / n)``.

    W is the frozen weight of a layer that LoRA adapts, s its scaling, A and B its adapter; ``|W_i|`` is the norm of row
    i of the merged weight ``W + s B A``, n the number of columns. The noise is as large for the merged model as its
    weights, where noise in A and B alone would reach only what they span. The frozen weights come back bit for bit.

    Without adapters, the noise is in every trained weight with two or more axes, by the same rule: random weight
    perturbation, filter by filter.

    Cost: one pass, and a copy of the weights that move.

    Source: Li et al., "Flat-LoRA: Low-Rank Adaptation over a Flat Loss Landscape", ICML 2025 (arXiv 2409.14396), and
    the authors' code. There rho rises as (1 - cos) / 2 over training: ``flat_lora@cosine=1``. The authors reseed the
    global generator from the clock and subtract the noise again, which leaves rounding errors in the frozen weights;
    here the noise comes from the random state without advancing it, and the weights are restored from a copy.

    When: a large model is fine-tuned with LoRA, and training must cost what plain training costs.

    When not: the frozen weights are quantized or sharded (refused).

    Args:
        model: The model to train.
        rho: Standard deviation of the noise in a row, relative to the root mean square of the row's weights. 0 is plain
            training.

    Raises:
        ValueError: rho is negative, NaN or infinite, or adapted weights are quantized or sharded.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.05) -> None:
        super().__init__(model)
        self.rho = nonnegative("FlatLoRA", "rho", rho)

    @property
    def loss_is_perturbed(self) -> bool:
        """Always."""
        return True

    def fill(self, passes: Passes) -> Step:
        if self.rho == 0:
            return Step(passes.backward(loss_of(passes.plain_forward())))
        refuse_sharded(self, "the noise")
        params, scales = self._moving(passes)
        noise = [z * scale.to(z.dtype) for z, scale in zip(passes.noise(params), scales, strict=True)]
        return fill_in_one_pass(passes, noise, 1.0, vectors.length(noise).value, params=params)

    @torch.no_grad()
    def _moving(self, passes: Passes) -> tuple[list[nn.Parameter], list[Tensor]]:
        """The weights that move, and the standard deviation of the noise in each row."""
        modules: list[Any] = list(passes.structure.modules.values())
        layers = [m for m in modules if hasattr(m, "base_layer") and getattr(m, "lora_A", {})]
        if not layers:
            trained = [p for p in passes.params if p.ndim > 1]
            return trained, [self.rho * _root_mean_square(p, 0) for p in trained]
        params, scales = [], []
        for layer in layers:
            weight = self._base_weight(layer)
            merged, rows = weight.detach().clone(), 1 if getattr(layer, "fan_in_fan_out", False) else 0
            for name in layer.active_adapters:
                if name in layer.lora_A:
                    product = layer.scaling[name] * (layer.lora_B[name].weight @ layer.lora_A[name].weight)
                    merged += (product.T if rows else product).to(merged.dtype)
            params.append(weight)
            scales.append(self.rho * _root_mean_square(merged, rows))
        return params, scales

    def _base_weight(self, layer: Any) -> nn.Parameter:
        weight: nn.Parameter = layer.base_layer.weight
        if not weight.is_floating_point() or weight.ndim != 2 or layer.merged:
            what = "merged already" if getattr(layer, "merged", False) else "quantized, or not a matrix"
            raise ValueError(
                f"{self.spec} adds noise to the frozen weight of every adapted layer, and that of a "
                f"{type(layer).__name__} is {what} ({weight.dtype}, {list(weight.shape)}); use random_sam, or sam"
            )
        return weight


def _root_mean_square(weight: Tensor, rows: int) -> Tensor:
    """Root mean square of the entries of each row; the axis of the rows is kept, the others have length 1."""
    axes = [axis for axis in range(weight.ndim) if axis != rows]
    wide = vectors.wide(weight.detach())
    count = math.prod(weight.shape[axis] for axis in axes)
    return torch.linalg.vector_norm(wide, dim=axes, keepdim=True) / math.sqrt(count)
