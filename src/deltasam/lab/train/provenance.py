"""Provenance of a run: data, plugins, versions, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deltasam.lab.train import distributed as processes
from deltasam.lab.train import plugins

if TYPE_CHECKING:
    from deltasam.lab.data.dataset import Data


KNOWN_ROWS = "evaluation_rows_in_training"


def provenance(data: Data) -> dict[str, Any]:
    """Everything except the options that affects a run's numbers: contents of data and plugins, versions, processes.

    Also the number of evaluation rows with the text of a training row, if any, which makes the numbers less reliable.
    """
    known = getattr(data, KNOWN_ROWS, 0)
    overlap = {KNOWN_ROWS: known} if known else {}
    libraries = {name: version(name) for name in ("deltasam", "torch", "transformers")}
    return {
        "data_sha256": data.fingerprint,
        **libraries,
        **overlap,
        **plugins.fingerprints(),
        "processes": processes.count(),
    }


def machine() -> dict[str, Any]:
    """The hardware and threads that times depend on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {"system": platform.platform(), "python": platform.python_version(), "processor": _processor()}
    return {**found, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
