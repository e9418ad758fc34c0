"""Choose the device to compute on."""

from __future__ import annotations

import os
import platform

import torch

from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes


def find_device(name: str) -> str:
    """The name of a working device; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        UserError: The device does not exist on this machine.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    if name.startswith("cuda"):
        # cuBLAS is deterministic only with it, and reads it when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.empty(0, device=_own(name))
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); use --device auto") from error
    return name


def own_device(name: str) -> str:
    """The device of this process: on a machine with several GPUs, the one of its local rank.

    A collective call: all processes that train together must make it.

    Raises:
        UserError: There is no GPU for it.
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
    """The GPU of a process that was started with others; any other device unchanged."""
    number, there = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    if name != "cuda" or number is None or not there:
        return name
    return f"cuda:{int(number) % there}"  # a scheduler may show each process a single GPU
