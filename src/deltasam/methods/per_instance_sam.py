"""Per-instance SAM: every example has a perturbation of its own."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from deltasam import weight_space
from deltasam.checks import nonnegative
from deltasam.method import Method, Step
from deltasam.outputs import example_losses_of
from deltasam.passes import Passes, radius_ratio
from deltasam.per_example.record import NotCoveredError, Record
from deltasam.per_example.shift import gradient_norms, shifted


class PerInstanceSAM(Method, name="per_instance_sam"):
    """Mean gradient at each example's own adversarial weights: ``mean_i grad L_i(w + rho * g_i / |g_i|)``.

    ``g_i = grad L_i(w)``; also called m-sharpness. Exact in two ways. Where every trainable parameter belongs to a
    Linear, Embedding or LayerNorm of its own, in float32 or float64, and no example's loss depends on another, two
    batched passes are enough: each layer's output is shifted by what the example's own perturbation of its weights
    would add. Whether that holds is checked against autograd on the first step (cost: about one pass). Everything
    else goes one group of examples after the other, a pass over the whole batch for each, and says so once.
    A perturbation per example adds up where one per batch averages out: use a smaller rho than for SAM.

    Source: Foret et al., ICLR 2021 (arXiv 2010.01412), section 4.1 (m-sharpness); as per-instance perturbation
    in Zhou et al., Findings of EMNLP 2022 (arXiv 2112.08772). The two batched passes are this library's own.

    Args:
        model: The model to train.
        rho: Radius of each perturbation, in the Euclidean norm over all trainable weights. 0 is plain training.
        m: How many consecutive examples share a perturbation; divides the batch. The whole batch is SAM.

    Raises:
        ValueError: rho is negative, NaN or infinite, m is below 1, or m does not divide the batch.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.005, m: int = 1) -> None:
        super().__init__(model)
        self.rho = nonnegative("PerInstanceSAM", "rho", rho)
        if m != int(m) or m < 1:
            raise ValueError(f"PerInstanceSAM(m={m}): m must be a whole number, 1 or more")
        self.m = int(m)
        self._checked: frozenset[str] = frozenset()
        self._said: set[str] = set()

    def _fill(self, passes: Passes) -> Step:
        record = Record(self.model)
        with record.open():
            losses = example_losses_of(passes.first(), "PerInstanceSAM")
        groups = self._groups(len(losses))
        try:
            metrics = self._descend_together(passes, losses, record)
        except NotCoveredError as reason:
            self._say_once(str(reason))
            metrics = self._descend_one_by_one(passes, losses, groups)
        return Step(losses.detach().mean(), metrics)

    def _groups(self, n: int) -> list[slice]:
        if n % self.m:
            raise ValueError(
                f"PerInstanceSAM(m={self.m}): m must divide the number of examples in the batch, which is {n}; "
                f"drop the last, smaller batch or use m=1"
            )
        return [slice(start, start + self.m) for start in range(0, n, self.m)]

    def _descend_together(self, passes: Passes, losses: Tensor, record: Record) -> dict[str, Tensor]:
        record.check_layers(len(losses))
        names = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        checked = names == self._checked
        record.complete(passes.grad(losses.sum(), [call.y for call in record.calls], retain_graph=not checked))
        if not checked:
            record.check_gradients(passes, losses)
            self._checked = names
        norms = gradient_norms(record, len(losses) // self.m)
        factors = torch.where(norms > 0, self.rho / norms, torch.zeros_like(norms))  # rho / inf is 0
        with shifted(record, factors), passes.at() as point:
            perturbed_loss = passes.backward(example_losses_of(point.output, "PerInstanceSAM").mean())
        # Nothing was moved or rounded: the radius is rho wherever there was a direction to go.
        return self._metrics(perturbed_loss, norms / self.m, (factors * norms).nan_to_num(0.0))

    def _descend_one_by_one(self, passes: Passes, losses: Tensor, groups: list[slice]) -> dict[str, Tensor]:
        facts = [self._descend_group(passes, losses, group) for group in groups]
        perturbed, norms, radii = (torch.stack(column) for column in zip(*facts, strict=True))
        return self._metrics(perturbed.sum(), norms, radii)

    def _descend_group(self, passes: Passes, losses: Tensor, group: slice) -> tuple[Tensor, Tensor, Tensor]:
        ascent = passes.grad(losses[group].mean(), retain_graph=group.stop < len(losses))
        norm = weight_space.norm(ascent)
        with passes.at(ascent, weight_space.length_to(self.rho, norm)) as point:
            perturbed = example_losses_of(point.output, "PerInstanceSAM")[group]
            share = passes.backward(perturbed.sum() / len(losses))
            return share, norm, point.radius()

    def _metrics(self, perturbed_loss: Tensor, norms: Tensor, radii: Tensor) -> dict[str, Tensor]:
        return {
            "perturbed_loss": perturbed_loss,
            "ascent_norm": norms.mean(),
            "radius_ratio": radius_ratio(radii.mean(), self.rho),
            "group_grad_norms": norms,
        }

    def _say_once(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(
                f"PerInstanceSAM goes one example at a time, exact but slow: {reason}", RuntimeWarning, stacklevel=4
            )
