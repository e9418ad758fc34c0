"""S2-SAM: the weights move along the gradient of the step before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.passes import Passes
from deltasam.core.torch_internals import foreach
from deltasam.core.vectors import Vector
from deltasam.method import Step
from deltasam.methods.bases.gradient_state import check_vectors, refuse_sharded
from deltasam.methods.bases.known_perturbation import KnownPerturbation


class S2SAM(KnownPerturbation, name="s2_sam"):
    """Gradient at weights moved along the last step's gradient: ``grad L(w + rho * g' / |g'|)``.

    g' is the gradient with which the optimizer made its last step, whatever it was summed, averaged or clipped from:
    all micro-batches of a step move along the same one, and so do all processes. The first step is a plain one, and a
    step that a loss scaler skips leaves g' as it is.

    Call ``method.follow(optimizer)`` once before training.

    Cost: one pass, and a copy of the gradient.

    Source: Ji et al., "A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate
    Sparse Training", NeurIPS 2024.

    When: training must cost what plain training costs, and batches are large enough for two of them to agree on a
    direction.

    When not: gradients of different batches hardly agree: then the perturbation is close to a random one. The weights
    are sharded (refused).

    Args:
        model: The model to train.
        rho: Radius of the perturbation, in the Euclidean norm over the weights that move. 0 is plain training.
        only: Which parameters move: ``norm``, ``head``, ``adapters``, a class of layers, or a regular expression on
            names; None: all.

    Raises:
        ValueError: rho is negative, NaN or infinite, or the weights are sharded.
        RuntimeError: It follows no optimizer.
    """

    neutral: ClassVar[dict[str, float]] = {"rho": 0.0}

    def __init__(self, model: nn.Module, *, rho: float = 0.05, only: str | None = None) -> None:
        super().__init__(model, rho=rho, only=only)
        self._last: dict[str, Tensor] = {}

    def follow(self, optimizer: torch.optim.Optimizer, *, total_steps: int | None = None) -> None:
        """Keep the gradient of each step of this optimizer from now on."""
        self.after_each_step(optimizer, self._keep)

    def _keep(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad and id(p) in own}
        found = {n: p.grad for n, p in named.items() if p.grad is not None}
        grads = {n: g.to_dense() if g.is_sparse else g.detach() for n, g in found.items()}
        kept = list(self._last.values())
        if not grads:
            return
        if all(map(_alike, grads.values(), kept)) and grads.keys() == self._last.keys():
            foreach.copy_(kept, list(grads.values()))  # new memory would cost more than the copy
        else:
            self._last = {n: g.clone() for n, g in grads.items()}

    def state_dict(self) -> dict[str, Any]:
        """The gradient of the last step, by parameter name."""
        return {"last_gradient": {n: g.clone() for n, g in self._last.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved gradient.

        Raises:
            ValueError: The state was saved by another method or for another model.
        """
        self.check_state(state, ("last_gradient",))
        saved = check_vectors(self, state["last_gradient"], "a gradient")
        self._last = {n: g.clone() for n, g in saved.items()}

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        refuse_sharded(self, "the last gradient")
        return super().fill_step(micro_batches)

    def known_direction(self, passes: Passes) -> Vector:
        if self._following is None:
            raise RuntimeError(
                f"{self.spec} moves along the gradient of the optimizer's last step; call "
                f"method.follow(optimizer) once before training"
            )
        trained = passes.structure.trained
        return [g if (g := self._last.get(n)) is None else g.to(p.device) for n, p in trained.items()]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
