"""Where a benchmark computes: the device, the precision, and the clock and the memory that tell what was used there."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.diagnostics.measure import wait_for_device
from deltasam.errors import UserError
from deltasam.lab.train.device import find_device
from deltasam.lab.train.provenance import machine

Task = Callable[[], tuple[nn.Module, Callable[[], Tensor]]]
"""Makes a model, and a function that computes its losses [n] on a batch."""

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """A device and a precision.

    Attributes:
        device: As PyTorch names it.
        precision: ``fp32``, or ``bf16``: the losses are computed under autocast.
    """

    device: str = "cpu"
    precision: str = "fp32"

    @property
    def kind(self) -> str:
        """Of the device."""
        return torch.device(self.device).type

    def tensors(self) -> AbstractContextManager[object]:
        """Around whatever makes tensors and models: they are made on the device."""
        return torch.device(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """Around a forward pass."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.kind, dtype)

    def task(self, task: Task) -> Task:
        """The same task in this place."""

        def here() -> tuple[nn.Module, Callable[[], Tensor]]:
            with self.tensors():
                model, losses = task()
            return model.to(self.device), partial(self._losses, losses)

        return here

    def _losses(self, losses: Callable[[], Tensor]) -> Tensor:
        with self.autocast():
            return losses()

    def clock(self, name: str = "wall") -> Callable[[], float]:
        """Seconds by one of ``CLOCKS``, read when the device has done what it was given."""
        read = CLOCKS[name]
        if self.kind == "cpu":
            return read

        def after_the_device() -> float:
            wait_for_device()
            return read()

        return after_the_device

    def peak_memory(self) -> float:
        """The most memory in MiB that was in use so far.

        Allocated by PyTorch on CUDA; resident on a CPU, where Python and libraries are in it.
        """
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if self.kind != "cpu":
            raise SystemExit(f"how much memory was in use is known of cpu and cuda, not of {self.kind}")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.kind == "cuda" else self.device
        return f"{name}, {self.precision}, torch {torch.__version__}, {torch.get_num_threads()} threads"

    def conditions(self) -> dict[str, Any]:
        """What times depend on, for a record of them."""
        here = {"device": self.device, "precision": self.precision}
        return {**here, "torch": torch.__version__, "machine": machine()}


def add_options(parser: argparse.ArgumentParser, *, device: str = "cpu", precision: bool = True) -> None:
    """The options that say where.

    Args:
        parser: Of the benchmark.
        device: Where it computes unless told.
        precision: Whether it can be run in either.
    """
    parser.add_argument("--device", type=_device, default=device, help=f"cpu, cuda, cuda:1, or auto; default {device}")
    if precision:
        parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16: under autocast")


def place_of(options: argparse.Namespace) -> Place:
    """What was asked for."""
    return Place(options.device, options.precision)


def _device(name: str) -> str:
    try:
        return find_device(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
