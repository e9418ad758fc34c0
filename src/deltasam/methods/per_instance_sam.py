"""Per-instance SAM: every example has a perturbation of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam import weight_space
from deltasam.checks import nonnegative
from deltasam.method import Method, Step
from deltasam.outputs import example_losses_of
from deltasam.passes import Passes, radius_ratio


class PerInstanceSAM(Method, name="per_instance_sam"):
    """Mean gradient at each example's own adversarial weights: ``mean_i grad L_i(w + rho * g_i / |g_i|)``.

    ``g_i = grad L_i(w)``; also called m-sharpness. Exact, one group of examples after the other: with n
    examples, n/m passes after the first, each over the whole batch so that every example keeps its dropout
    mask. A perturbation per example adds up where one per batch averages out: use a smaller rho than for SAM.

    Source: Foret et al., ICLR 2021 (arXiv 2010.01412), section 4.1 (m-sharpness); as per-instance perturbation
    in Zhou et al., Findings of EMNLP 2022 (arXiv 2112.08772).

    Args:
        model: The model to train.
        rho: Radius of each perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        m: How many consecutive examples share a perturbation; divides the batch. The whole batch is SAM.

    Raises:
        ValueError: rho is negative, NaN or infinite, m is below 1, or m does not divide the batch.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.01, m: int = 1) -> None:
        super().__init__(model)
        self.rho = nonnegative("PerInstanceSAM", "rho", rho)
        if m != int(m) or m < 1:
            raise ValueError(f"PerInstanceSAM(m={m}): m must be a whole number, 1 or more")
        self.m = int(m)

    def _fill(self, passes: Passes) -> Step:
        losses = example_losses_of(passes.first(), "PerInstanceSAM")
        facts = [self._descend_group(passes, losses, group) for group in self._groups(len(losses))]
        perturbed, norms, radii = (torch.stack(column) for column in zip(*facts, strict=True))
        metrics = {
            "perturbed_loss": perturbed.sum(),
            "ascent_norm": norms.mean(),
            "radius_ratio": radius_ratio(radii.mean(), self.rho),
            "group_grad_norms": norms,
        }
        return Step(losses.detach().mean(), metrics)

    def _groups(self, n: int) -> list[slice]:
        if n % self.m:
            raise ValueError(
                f"PerInstanceSAM(m={self.m}): m must divide the number of examples in the batch, which is {n}; "
                f"drop the last, smaller batch or use m=1"
            )
        return [slice(start, start + self.m) for start in range(0, n, self.m)]

    def _descend_group(self, passes: Passes, losses: Tensor, group: slice) -> tuple[Tensor, Tensor, Tensor]:
        ascent = passes.grad(losses[group].mean(), retain_graph=group.stop < len(losses))
        norm = weight_space.norm(ascent)
        with passes.at(ascent, weight_space.length_to(self.rho, norm)) as point:
            perturbed = example_losses_of(point.output, "PerInstanceSAM")[group]
            share = passes.backward(perturbed.sum() / len(losses))
            return share, norm, point.radius()
