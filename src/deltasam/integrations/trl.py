"""TRL: ``SFTTrainer`` with a method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deltasam.integrations.missing import missing

try:
    import trl
except ModuleNotFoundError as error:
    raise missing("trl", error) from error

from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin
from deltasam.integrations.plain_lm_head import add_plain_lm_head
from deltasam.integrations.trainer_losses import matching
from deltasam.passes import in_later_pass

__all__ = ["SFTConfig", "SFTTrainer"]


@dataclass
class SFTConfig(MethodArguments, trl.SFTConfig):
    """``trl.SFTConfig`` with ``method``."""


class SFTTrainer(MethodTrainerMixin, trl.SFTTrainer):
    """``trl.SFTTrainer`` with ``method``.

    For a method that looks at single examples or at predictions the logits are made in full: TRL's fused head hides
    from them how its weights are used.
    """

    _metrics: Any
    _total_train_tokens: Any
    padding_free: bool

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As there; and the model's head, if the method must see it.

        Raises:
            ValueError: The method looks at single examples, and a row of the batch is not one.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.method is not None and self.method.per_example:
            self._refuse_packed()
        if self.method is not None and (self.method.per_example or self.method.compares_predictions):
            add_plain_lm_head(self.accelerator.unwrap_model(self.model))
        return scheduler

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As there; what it counts of a batch (tokens, entropy) is counted in the first pass only."""
        if not in_later_pass():
            return super().compute_loss(*args, **kwargs)
        metrics, tokens = copy.deepcopy(self._metrics), self._total_train_tokens
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            self._metrics, self._total_train_tokens = metrics, tokens

    def example_losses(self, output: Any, labels: Tensor | None, loss: Tensor, num_items_in_batch: Any) -> Tensor:
        """As there, from the probabilities of the tokens where the head gives these."""
        self._refuse_packed()
        log_probs = output.get("log_probs") if hasattr(output, "get") else None
        if log_probs is None:
            return super().example_losses(output, labels, loss, num_items_in_batch)
        losses = -log_probs * (log_probs.exp().detach() if self.args.loss_type == "dft" else 1)
        way = (losses.sum(1), output.label_mask.sum())
        return matching([way], loss, log_probs, items=num_items_in_batch, scales=self.loss_scales())

    def _refuse_packed(self) -> None:
        if self.padding_free or self.args.packing:
            raise ValueError(
                f"{self.args.method} looks at single examples, but with packing or padding_free a row of the batch "
                f"holds several; set both to False, or use a method with one perturbation per batch (sam, asam)"
            )
