"""TRL: ``SFTTrainer``, ``RewardTrainer`` and ``DPOTrainer`` with a method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltasam.integrations.missing import missing

try:
    import trl
except ModuleNotFoundError as error:
    raise missing("trl", error) from error

from deltasam.integrations.halves import InHalves
from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin
from deltasam.integrations.plain_lm_head import add_plain_lm_head
from deltasam.integrations.trainer_losses import matching

__all__ = ["DPOConfig", "DPOTrainer", "RewardConfig", "RewardTrainer", "SFTConfig", "SFTTrainer"]


@dataclass
class SFTConfig(MethodArguments, trl.SFTConfig):
    """``trl.SFTConfig`` with ``method``."""


@dataclass
class RewardConfig(MethodArguments, trl.RewardConfig):
    """``trl.RewardConfig`` with ``method``."""


@dataclass
class DPOConfig(MethodArguments, trl.DPOConfig):
    """``trl.DPOConfig`` with ``method``."""


class SFTTrainer(MethodTrainerMixin, trl.SFTTrainer):
    """``trl.SFTTrainer`` with ``method``.

    For methods that are per-example or compare predictions, the logits are materialised: TRL's fused head hides from
    them how its weights are used.
    """

    rows_are_examples: ClassVar[bool | None] = True
    padding_free: bool

    def create_scheduler(self, num_training_steps: int, optimizer: object = None) -> Any:
        """The parent's scheduler; also replaces the model's head if the method must see it.

        Raises:
            ValueError: The method works on single examples, and a row of the batch is not one.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.method is not None and self.method.per_example:
            self._refuse_packing()
        if self.method is not None and (self.method.per_example or self.method.compares_predictions):
            add_plain_lm_head(self.accelerator.unwrap_model(self.model))
        return scheduler

    def example_losses(self, output: Any, labels: Tensor | None, loss: Tensor, num_items_in_batch: object) -> Tensor:
        """One loss per example [n], from the tokens' log-probabilities where the head returns them."""
        self._refuse_packing()
        log_probs = output.get("log_probs") if hasattr(output, "get") else None
        if log_probs is None:
            return super().example_losses(output, labels, loss, num_items_in_batch)
        losses = -log_probs * (log_probs.exp().detach() if self.args.loss_type == "dft" else 1)
        way = (losses.sum(1), output.label_mask.sum())
        return matching([way], loss, log_probs, items=num_items_in_batch, scales=self.loss_scales())

    def _refuse_packing(self) -> None:
        if self.padding_free or self.args.packing:
            raise ValueError(
                f"{self.args.method} works on single examples, but with packing or padding_free a row of the batch "
                f"holds several; set both to False, or use a method with one perturbation per batch (sam, asam)"
            )


class RewardTrainer(MethodTrainerMixin, trl.RewardTrainer):
    """``trl.RewardTrainer`` with ``method``.

    An example is a pair: the batch holds the chosen text in its first half and the rejected one in its second. For a
    per-example method the model is therefore called once per half.
    """

    rows_are_examples: ClassVar[bool | None] = True

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's loss, with one call of the model per half for per-example methods."""
        return super().compute_loss(InHalves(model) if _by_pairs(self) else model, inputs, *args, **kwargs)


class DPOTrainer(MethodTrainerMixin, trl.DPOTrainer):
    """``trl.DPOTrainer`` with ``method``.

    An example is a pair, as for ``RewardTrainer``. For a per-example method the logits are materialised, as for
    ``SFTTrainer``.
    """

    rows_are_examples: ClassVar[bool | None] = True
    ref_model: Any
    aux_loss_enabled: bool = False

    def create_scheduler(self, num_training_steps: int, optimizer: object = None) -> Any:
        """The parent's scheduler; also replaces the model's head if the method must see it.

        Raises:
            ValueError: The method works on single examples, and a term of the loss depends on the whole batch.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.method is not None and self.method.per_example:
            if self.aux_loss_enabled:
                raise ValueError(
                    f"{self.args.method} works on single examples, but the router's auxiliary loss is that of the "
                    f"whole batch; set router_aux_loss_coef=0.0, or use a method with one perturbation per batch (sam, "
                    f"asam)"
                )
            models = [self.accelerator.unwrap_model(self.model)]
            # The fused head computes in float32: a reference in double precision would be rounded.
            if self.ref_model is not None and self.ref_model.dtype == torch.float64:
                models.append(self.accelerator.unwrap_model(self.ref_model))
            for model in models:
                add_plain_lm_head(model)
        return scheduler

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's loss, with one call of the model per half for per-example methods."""
        if not _by_pairs(self):
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self._reference_in_halves():
            return super().compute_loss(InHalves(model), inputs, *args, **kwargs)

    @contextmanager
    def _reference_in_halves(self) -> Iterator[None]:
        """Call a reference that is the model without its adapter with one row per pair as well."""
        if self.ref_model is not None or not hasattr(self.model, "peft_config"):
            yield
            return
        from trl.trainer.utils import use_adapter

        def reference(**kwargs: object) -> Any:
            model = self.accelerator.unwrap_model(self.model)
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                return InHalves(self.model)(**kwargs)

        self.ref_model = reference
        try:
            yield
        finally:
            self.ref_model = None


def _by_pairs(trainer: MethodTrainerMixin) -> bool:
    """Whether a loss is being computed for a per-example method."""
    return trainer.method is not None and trainer.method.per_example and torch.is_grad_enabled()
