"""TRL: ``SFTTrainer`` with a method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from deltasam.integrations.hf import MethodArguments, MethodTrainerMixin
from deltasam.integrations.missing import missing
from deltasam.passes import in_later_pass

try:
    import trl
except ModuleNotFoundError as error:
    raise missing("trl", error) from error


@dataclass
class SFTConfig(MethodArguments, trl.SFTConfig):
    """``trl.SFTConfig`` with ``method``."""


class SFTTrainer(MethodTrainerMixin, trl.SFTTrainer):
    """``trl.SFTTrainer`` with ``method``."""

    _metrics: Any
    _total_train_tokens: Any

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As there; what it counts of a batch (tokens, entropy) is counted in the first pass only."""
        if not in_later_pass():
            return super().compute_loss(*args, **kwargs)
        metrics, tokens = copy.deepcopy(self._metrics), self._total_train_tokens
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            self._metrics, self._total_train_tokens = metrics, tokens
