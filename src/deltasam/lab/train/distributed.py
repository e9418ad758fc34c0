"""The processes that train together: those that torchrun or accelerate started, else this one alone.

They meet in few places, and in each of them first hear of one another: ``gather`` delivers, instead of a value, what a
process has refused. So an error on one of them, whatever it was doing, ends them all with one message, and none waits
for another that is gone.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltasam.core.collectives import mean_over_processes
from deltasam.core.runtime import Runtime
from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes

T = TypeVar("T")

_STARTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RefusedError(UserError):
    """What one of the processes refused, as all of them hear it."""


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that were started together; alone, nothing happens.

    On the CPU they talk by gloo, GPUs by NCCL. A group that there is already stays.

    Raises:
        RefusedError: One of them raised a UserError: all leave together.
    """
    _refuse_accelerate_on_cpu()
    if _started() == 1:
        yield
        return
    new = not together()
    if new:
        # A module of PyTorch's has the group as a default argument if it is imported after this, as transformers would
        # import it. The group then outlives its end, and a thread of it may abort the process on the way out.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with _ending_together():
            yield
            gather(None)  # the last may still refuse something
    finally:
        if new:
            dist.destroy_process_group()


@contextmanager
def _ending_together() -> Iterator[None]:
    """Tell the others what this process refuses, and let each end by itself, with its own exit code.

    torchrun would end the others as soon as the first is gone, before they have said why.
    """
    try:
        try:
            yield
        except RefusedError:
            raise
        except UserError as error:
            _exchange(None, refusal=str(error))
    except RefusedError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


@contextmanager
def quiet_unless_main() -> Iterator[None]:
    """Let the main process alone write to the terminal; a traceback is shown by whoever has one."""
    if _started() == 1 or os.environ["RANK"] == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def together() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if together() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if together() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """A value of each process, in the order of their ranks. All of them must come to the same call.

    Raises:
        RefusedError: One of them refused something instead, or is gone.
    """
    return _exchange(value) if together() else [value]


def on_main(action: Callable[[], T]) -> T:
    """What an action gives in the main process, which alone takes it.

    Raises:
        RefusedError: The main process, or another, refused something.
    """
    if not together():
        return action()
    found = [action() if is_main() else None]
    gather(None)
    with connected():
        dist.broadcast_object_list(found, src=0)
    return cast(T, found[0])


def part(items: Sequence[T]) -> list[T]:
    """The share of this process in some items: consecutive, and as even as can be; it may be empty."""
    size, larger = divmod(len(items), count())
    start = rank() * size + min(rank(), larger)
    return list(items[start : start + size + (rank() < larger)])


@contextmanager
def connected() -> Iterator[None]:
    """Around what sends tensors.

    Raises:
        RefusedError: Another process is gone.
    """
    try:
        yield
    except RuntimeError as error:  # what the library makes of a closed connection
        raise RefusedError(
            f"process {rank()} of {count()} has lost another, which may have said why, or was killed, for want of "
            f"memory perhaps ({str(error).splitlines()[0]})"
        ) from error


def _exchange(value: T, refusal: str | None = None) -> list[T]:
    messages: list[Any] = [None] * count()
    with connected():
        dist.all_gather_object(messages, (refusal, value))
    for who, (other, _) in enumerate(messages):
        if other is not None:
            raise RefusedError(other if who == 0 else f"{other} (said by process {who} of {count()})")
    return [v for _, v in messages]


def _started() -> int:
    """How many processes were started together, this one among them."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _STARTED) else 1


def _refuse_accelerate_on_cpu() -> None:
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise UserError(
            "accelerate launch --cpu was asked for several processes and started one; start them with "
            "torchrun --nproc-per-node N, or with accelerate launch --multi_gpu and our --device cpu"
        )


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
