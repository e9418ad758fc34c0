"""Peak memory use of a device."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory use since this object was created.

    On CUDA: memory allocated by PyTorch. On a Linux CPU: the resident set, which includes Python and libraries.
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
        """The peak in MiB; None where the system does not report it."""
        if not self._known:
            return None
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        found = re.search(r"^VmHWM:\s*(\d+) kB", self._STATUS.read_text(), re.MULTILINE)
        return int(found[1]) / 2**10 if found else None


def _reset_resident_peak() -> bool:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps freed memory, which would count for a later run
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak of the resident set
    except OSError:  # a container may forbid it; the peak is then unknown, not zero
        return False
    return True
