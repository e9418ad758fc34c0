"""The Hessian of the mean loss over all batches, as a linear operator. Needs curvlinops."""

from __future__ import annotations

import torch
from curvlinops import HessianLinearOperator
from torch import Tensor

from deltasam.core.closure import example_losses_of
from deltasam.core.restore import RandomState, accelerators
from deltasam.diagnostics.batches import Batches


class ClosureHessian(HessianLinearOperator):
    """The Hessian with respect to the trainable parameters; ``operator @ v`` is a product with it.

    A product is the gradient of ``g^T v``, by two backwards through whatever a closure does. It replaces the operator's
    own product, which runs the model through ``torch.func``: that knows neither closures nor gradient checkpointing,
    lacks some functions (SiLU, GroupNorm), and is wrong for the weight of a LayerNorm (curvlinops 3.0.1 with PyTorch
    2.13; a test shows it).

    Args:
        batches: The losses.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        no_data = [(torch.empty(0), torch.empty(0))]  # the closures have it
        super().__init__(
            batches.model, None, batches.params, no_data, check_deterministic=False, num_data=batches.examples
        )

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        """The products with k vectors, one tensor [*shape, k] per parameter."""
        product = [torch.zeros_like(m) for m in M]
        random_state = RandomState(accelerators(self._batches.model.parameters()))
        for number in range(len(self._batches)):
            self._add_product(number, M, product)
        random_state.restore()  # every batch began from a state of its own; whoever draws vectors must not see it
        return product

    def _add_product(self, number: int, vectors: list[Tensor], product: list[Tensor]) -> None:
        """Add one batch's share."""
        losses = example_losses_of(self._batches.passes(number).first(), self._batches.owner)
        params = self._batches.params
        found = torch.autograd.grad(losses.sum() / self._batches.examples, params, create_graph=True, allow_unused=True)
        bent = [(i, g) for i, g in enumerate(found) if g is not None and g.requires_grad]  # the others are constant
        if not bent:
            return
        for k in range(vectors[0].shape[-1]):
            along = torch.stack([(g * vectors[i][..., k]).sum() for i, g in bent]).sum()
            parts = torch.autograd.grad(along, params, retain_graph=True, allow_unused=True)
            for total, part in zip(product, parts, strict=True):
                if part is not None:
                    total[..., k] += part
