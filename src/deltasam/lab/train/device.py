"""Where to compute, and the most memory that was in use there."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import sys
from pathlib import Path

import torch

from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes


def find_device(name: str) -> str:
    """The name of a device that works; ``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        UserError: The device does not exist here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    if name.startswith("cuda"):
        # With it, and only if it is there when CUDA starts, products give the same bits every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.empty(0, device=_own(name))
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); use --device auto") from error
    return name


def own_device(name: str) -> str:
    """The device of this process, which on a machine with several is the GPU of its number there.

    All processes that train together must come to this.

    Raises:
        UserError: There is none for it.
    """
    if processes.count() == 1 or name == "cpu":
        return name
    if name != "cuda":
        raise UserError(f"--device {name}: several processes train on cpu or cuda (each on a GPU of its own)")
    own, there = _own(name), torch.cuda.device_count()
    gpus = processes.gather((platform.node(), str(torch.cuda.get_device_properties(own).uuid)))
    if len(set(gpus)) < len(gpus):
        raise UserError(f"--device cuda: more processes than GPUs, of which there are {there}; start one per GPU")
    torch.cuda.set_device(own)
    return own


def _own(name: str) -> str:
    """The GPU of a process that was started among others; what else there is, as it is."""
    number, there = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    if name != "cuda" or number is None or not there:
        return name
    return f"cuda:{int(number) % there}"  # a scheduler may show each process one GPU alone


class PeakMemory:
    """The most memory in use since this object was made.

    Allocated by PyTorch on CUDA, resident in RAM (this includes Python and libraries) on a Linux CPU.
    """

    _STATUS = Path("/proc/self/status")

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self._known = self._cuda or (device == "cpu" and sys.platform == "linux" and _reset_resident_peak())
        self._device = device

    def mib(self) -> float | None:
        """The peak in MiB; None where the system does not tell."""
        if not self._known:
            return None
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        found = re.search(r"^VmHWM:\s*(\d+) kB", self._STATUS.read_text(), re.MULTILINE)
        return int(found[1]) / 2**10 if found else None


def _reset_resident_peak() -> bool:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps what was freed: a later run would count it as its own
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak of the resident set
    except OSError:  # a container may forbid it: then the peak is unknown, not zero
        return False
    return True
