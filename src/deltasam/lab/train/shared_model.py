"""One model in several processes: the same start, and the mean of their gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltasam.core.collectives import mean_over_processes
from deltasam.core.runtime import Runtime
from deltasam.lab.train import distributed as processes


class SilentPasses(Runtime):
    """Passes in which processes say nothing to each other, so that each may run as many as it likes."""

    def any_process(self, flag: bool, device: torch.device) -> bool:
        """The flag of this process."""
        return flag


def start_as_main(model: nn.Module) -> None:
    """Give the model the weights and buffers that it has in the main process.

    Raises:
        RefusedError: Another process refused something.
    """
    processes.gather(None)
    if processes.together():
        _as_in_main([*model.parameters(), *model.buffers()])


def average_gradients(model: nn.Module) -> None:
    """Replace every ``.grad`` by its mean over the processes; buffers become those of the main process.

    Once, when the method has filled ``.grad``, and not during a backward as DistributedDataParallel would: how many
    passes a method runs may differ between the processes. A parameter without a gradient counts as 0, unless none
    has one. The order of the sums never changes, so a resumed training repeats them bit for bit.

    Raises:
        RefusedError: Another process could not do its share.
    """
    if not processes.together():
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    without = set.intersection(*processes.gather({i for i, p in enumerate(trained) if p.grad is None}))
    _average([_gradient(p) for i, p in enumerate(trained) if i not in without])
    _as_in_main([b for b in model.buffers() if b.is_floating_point()])


def _as_in_main(tensors: list[Tensor]) -> None:
    with processes.connected():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _average(tensors: list[Tensor]) -> None:
    with processes.connected():
        for tensor, mean in zip(tensors, mean_over_processes(tensors), strict=True):
            tensor.copy_(mean)
