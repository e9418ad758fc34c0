"""The processes that train together: those started by torchrun or accelerate, else a single one.

They communicate in few places, and first exchange errors in each of them: ``gather`` delivers a process's refusal
instead of a value. So an error in one process, wherever it occurs, ends all of them with one message, and none waits
for another that has exited.
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
    """The error of one process, raised in all of them."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that were started together; a no-op for a single process.

    They communicate by gloo on the CPU, by NCCL on GPUs. An existing process group is kept.

    Raises:
        RefusedError: One of them raised a UserError: all exit together.
    """
    _refuse_accelerate_on_cpu()
    if _started() == 1:
        yield
        return
    new = not together()
    if new:
        # A PyTorch module that is imported after this (transformers imports it) holds the group in a default argument.
        # The group would then outlive its destruction, and one of its threads may abort the process on exit.
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
    """Send this process's error to the others, and let each exit by itself, with its own exit code.

    torchrun would terminate the others as soon as the first has exited, before they have reported why.
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
    """Let only the main process write to the terminal; every process shows its own traceback."""
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
    """The rank of this process, from 0."""
    return dist.get_rank() if together() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks. A collective call.

    Raises:
        RefusedError: One of them raised an error instead, or has exited.
    """
    return _exchange(value) if together() else [value]


def on_main(action: Callable[[], T]) -> T:
    """The result of an action that only the main process runs, sent to all.

    Raises:
        RefusedError: The main process, or another, raised an error.
    """
    if not together():
        return action()
    found = [action() if is_main() else None]
    gather(None)
    with connected():
        dist.broadcast_object_list(found, src=0)
    return cast(T, found[0])


def part(items: Sequence[T]) -> list[T]:
    """This process's part of some items: consecutive, and as even as possible; it may be empty."""
    size, larger = divmod(len(items), count())
    start = rank() * size + min(rank(), larger)
    return list(items[start : start + size + (rank() < larger)])


@contextmanager
def connected() -> Iterator[None]:
    """Context for code that sends tensors.

    Raises:
        RefusedError: Another process has exited.
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
    """Number of processes that were started together, including this one."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _STARTED) else 1


def _refuse_accelerate_on_cpu() -> None:
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise UserError(
            "accelerate launch --cpu was asked for several processes and started one; start them with "
            "torchrun --nproc-per-node N, or with accelerate launch --multi_gpu and our --device cpu"
        )


class SilentPasses(Runtime):
    """A runtime without communication, so that each process may run a different number of passes."""

    def any_process(self, flag: bool, device: torch.device) -> bool:
        """The flag of this process."""
        return flag


def start_as_main(model: nn.Module) -> None:
    """Broadcast the model's weights and buffers from the main process.

    Raises:
        RefusedError: Another process raised an error.
    """
    processes.gather(None)
    if processes.together():
        _as_in_main([*model.parameters(), *model.buffers()])


def average_gradients(model: nn.Module) -> None:
    """Replace every ``.grad`` by its mean over the processes; buffers become those of the main process.

    This happens once, after the method has filled ``.grad``, and not during a backward as in DistributedDataParallel:
    processes may run different numbers of passes. A missing gradient counts as 0, unless all processes lack it. The
    order of the sums is fixed, so a resumed run repeats them bit for bit.

    Raises:
        RefusedError: Another process failed.
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
