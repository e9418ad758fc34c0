"""Hugging Face Accelerate: gradients through ``accelerator.backward`` instead of ``loss.backward()``.

    runtime = AccelerateRuntime(accelerator)
    for batch in loader:
        with accelerator.accumulate(model):
            method.backward(lambda: model(**batch), runtime=runtime)  # instead of accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

The closure returns the unscaled loss: the accelerator does scaling, accumulation and averaging.
"""

from __future__ import annotations

from torch import Tensor, nn

from deltasam.core.runtime import Runtime
from deltasam.integrations.missing import missing
from deltasam.integrations.trained_parameters import refuse_other_parameters

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
except ModuleNotFoundError as error:
    raise missing("accelerate", error) from error

__all__ = ["AccelerateRuntime"]


class AccelerateRuntime(Runtime):
    """The accelerator's loss scaling, division by the accumulation steps and reduction over processes.

    Args:
        accelerator: The accelerator, after ``prepare``, so that its loss scaler exists.
        model: The method's model, if it is not one of the prepared models.

    Raises:
        ValueError: A prepared optimizer trains parameters that none of these models holds.
        NotImplementedError: The accelerator delegates the backward to an engine that also steps the optimizer, or
            shards weights in a way that cannot be perturbed.
    """

    def __init__(self, accelerator: Accelerator, *, model: nn.Module | None = None) -> None:
        super().__init__(scaler=accelerator.scaler)
        self.accelerator = accelerator
        kind = accelerator.distributed_type
        if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise NotImplementedError(
                f"{kind.value} runs backward and optimizer in its own engine, which allows no second pass; "
                f"use DDP or FSDP2 (fsdp_version: 2)"
            )
        if accelerator.has_lomo_optimizer:
            raise NotImplementedError(
                "LOMO steps each weight during the backward, which allows no second pass; use another optimizer"
            )
        if kind is DistributedType.FSDP and not accelerator.is_fsdp2:
            raise NotImplementedError("FSDP version 1 flattens the weights; use FSDP2 (fsdp_version: 2)")
        models = accelerator._models if model is None else [model]
        for optimizer in accelerator._optimizers if models else ():
            refuse_other_parameters(optimizer, models)

    def backward(self, loss: Tensor) -> None:
        """``accelerator.backward(loss)``."""
        self.accelerator.backward(loss)
