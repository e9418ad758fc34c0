"""The outputs of TRL's fused head, computed from materialised logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

_IGNORED = -100


def add_plain_lm_head(model: Any) -> None:
    """Compute ``model(..., fused_lm_head=True)`` by the model's own forward, in operations that can be traced.

    Args:
        model: A model that TRL gave a fused head, possibly with adapters. A second call has no effect.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base.forward, _PlainHead):
        base.forward = _PlainHead(base.forward)


@dataclass
class PlainCausalLMOutput(FusedCausalLMOutput):
    """The fused head's output with the logits [n, T, vocabulary]; a field, so that DDP can rebuild the output."""

    logits: Tensor | None = None


class _PlainHead:
    """A replacement for the forward with a fused head.

    Args:
        forward: The forward to replace; without ``fused_lm_head`` it is the model's own.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self.__wrapped__ = forward  # trainers read its signature to select the model's data columns

    def __call__(self, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        """The model's forward; with ``fused_lm_head`` the output that the fused head would return."""
        if not fused_lm_head:
            return self._forward(*args, **kwargs)
        labels, shifted, items = (kwargs.pop(k, None) for k in ("labels", "shift_labels", "num_items_in_batch"))
        output = self._forward(*args, **{**kwargs, "use_cache": False})
        logits = output.logits if shifted is not None else output.logits[:, :-1]
        return _read(logits, labels[:, 1:] if shifted is None else shifted, items, getattr(output, "aux_loss", None))


def _read(logits: Tensor, labels: Tensor, items: Any, aux_loss: Tensor | None) -> Any:
    counted = labels != _IGNORED
    distribution = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_probs = distribution.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(~counted, 0)
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1).masked_fill(~counted, 0)
        log_sum_sq_probs = (2 * distribution).logsumexp(-1).masked_fill(~counted, 0)
        mean_logits = logits.mean(-1).masked_fill(~counted, 0)
    return PlainCausalLMOutput(
        loss=-log_probs.sum() / (counted.sum().clamp(min=1) if items is None else items),
        log_probs=log_probs,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs,
        mean_logits=mean_logits,
        is_top1=distribution.argmax(-1) == labels,
        label_mask=counted,
        aux_loss=aux_loss,
        logits=logits,  # for methods that compare predictions
    )
